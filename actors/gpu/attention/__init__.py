"""Kernels of attention over the block cache, and how a context is cut into parts.

Open `paged_attention.py` first: it attends for decoding sequences.
"""
