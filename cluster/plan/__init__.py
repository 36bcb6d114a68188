"""`phimoe plan`: how many actors on which hardware, by a cost model. Pure: no torch, no Ray, no clock."""
