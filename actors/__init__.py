"""The processes that compute: dense actors and expert actors. Nothing here imports Ray or `cluster`.

Open `dense/engine.py` first: the loop that takes every sequence from its prompt to its last token.
"""
