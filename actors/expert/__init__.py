"""The expert actor: holds some experts of every layer and computes their products for the dense actors.

Open actor.py first, then experts.py, the computation.
"""
