"""Requests under way in an ingress replica: which dense actor computes a sequence, and what follows its loss.

Open `request.py` first; `channel_pool.py` has the connections to the dense actors.
"""
