"""Operations on a running service: scale, rebalance, restart, drain, and replacement of absent actors.

Open `operations.py` first; `absences.py` and `rebalance_trigger.py` decide when to act without a command.
"""
