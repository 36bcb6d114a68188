"""The processes that compute: dense actors and expert actors. Nothing here imports Ray or `cluster`.

Open `dense/engine.py` first: its loop takes every sequence from its prompt to its last token.
"""
