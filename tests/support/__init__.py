"""Helpers that several test packages share: faults, hosts, actors and ingress in this process, streams.

Open `local_actors.py` first for tests of the supervisor, `faults.py` for tests of a running service.
"""
