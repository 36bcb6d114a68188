"""From a model's name to its config and its weights: read, made up, quantized or written.

Open `open.py` first. `weights.py` is what an actor reads then.
"""
