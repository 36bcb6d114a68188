"""Keeps the service whole: watches actors, forms epochs, places experts, carries out operations. Without Ray.

Open `supervisor.py` first; `remote_actor.py` is what the supervisor needs of Ray, as protocols.
"""
