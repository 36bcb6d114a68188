"""Requests under way in an ingress replica: each sequence's choice of a dense actor, and its failover.

Open `request.py` first; `channel_pool.py` has the connections to the dense actors.
"""
