"""Finds a model by its name and reads its config and weights; also quantizes and writes checkpoints.

Open `open.py` first, then `weights.py`, which returns the weights that an actor asks for.
"""
