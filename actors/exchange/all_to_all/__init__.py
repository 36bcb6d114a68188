"""The transport "all_to_all": all actors of a membership take part in collectives, in lockstep.

Open wire_format.py first, then exchange.py and server.py, the two sides. endpoint.py is what the actors hold.
"""
