"""The dense end of links: sends rows to the holders of their experts and receives the results.

Open exchange.py first; endpoint.py is what the dense actor holds.
"""
