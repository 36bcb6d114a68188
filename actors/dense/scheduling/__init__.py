"""Which tokens of which sequences a step computes, and which KV blocks hold them. No tensors.

Open `scheduler.py` first: it plans a step.
"""
