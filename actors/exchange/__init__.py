"""How rows travel between a dense actor and the experts that the router chose, and how results come back.

Open interface.py first, then transports.py, the table of the ways in which rows can travel.
"""
