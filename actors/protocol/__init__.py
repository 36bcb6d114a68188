"""What `cluster` and the actors say to each other: messages, settings, frames. Imports no torch.

Open `messages.py` first: it lists what goes from where to where.
"""
