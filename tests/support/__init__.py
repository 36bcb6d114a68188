"""Helpers that several test packages share: faults, hosts, streams, and actors in the test's own process.

Open `local_actors.py` first for tests of the supervisor, `faults.py` for tests of a running service.
"""
