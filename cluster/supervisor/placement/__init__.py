"""Decides which expert actor holds which expert, and has the actors load and drop experts.

Open `placement.py` first: it decides. `reconciler.py` then calls the expert actors.
"""
