"""Drafts: guessed tokens that a step computes beside the tokens of its sequences. Drafts never change the
output.

Open `speculator.py` first: it adds drafts to a step and learns how often they are right.
"""
