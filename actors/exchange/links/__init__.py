"""The transport "links": one connection between each dense and each expert actor.

This folder has what both ends share.

Open link.py first, then dense/exchange.py and expert/server.py, the two sides.
"""
