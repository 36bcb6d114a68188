"""Kernels of attention over the block cache, and the rule that cuts a context into parts.

Open `paged_attention.py` first: it computes attention for decoding sequences.
"""
