"""Knows which actors live, and which of them work together in the present epoch.

Open `membership.py` first: it decides. `watcher.py` observes the actors, and `rounds.py` tells them the
epoch.
"""
