"""The protocol between `cluster` and the actors: messages, settings and frames. Imports no torch.

Open `messages.py` first: it lists which message goes from where to where.
"""
