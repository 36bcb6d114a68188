"""Keeps the service whole: it watches actors, forms epochs, places experts and carries out operations.

Open `supervisor.py` first. Nothing here imports Ray: `remote_actor.py` says, as protocols, what the
supervisor needs from Ray.
"""
