"""The dense end of links: sends rows to holders of their experts and takes in their results.

Open exchange.py first; endpoint.py is what the dense actor holds.
"""
