"""The expert end of links: connects to dense actors, reads rows, computes and answers.

Open server.py first; endpoint.py is what the expert actor holds.
"""
