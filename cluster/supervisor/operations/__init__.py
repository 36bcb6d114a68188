"""What changes a running service: scale, rebalance, restart, and the replacement of actors that stay away.

Open `operations.py` first; `absences.py` and `rebalance_trigger.py` decide when to act without a command.
"""
