"""The only package that calls Ray core: it starts Ray, and creates and calls the actors and the supervisor.

Open `supervisor_actor.py` first. This file must import nothing: `ray_environment.py` is imported before Ray.
"""
