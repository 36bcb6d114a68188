"""`phimoe plan`: predicts which numbers of actors serve a demand best on given hardware.

Open `search.py` first; `step.py` is the cost model of one step.
"""
