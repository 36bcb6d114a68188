"""Which actors live, and which of them work together in the present epoch.

Open `membership.py` first, which decides; `watcher.py` observes actors, `rounds.py` tells them the epoch.
"""
