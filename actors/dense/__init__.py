"""The dense actor: it schedules sequences and computes all of the model but the experts.

Open `engine.py` first: the loop that runs sequences to their end. `actor.py` builds everything around it.
"""
