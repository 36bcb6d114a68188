"""Random weights in the shapes of known models for benchmarks and tests, which need no checkpoint.

Open `dummy_reader.py` first: it takes the place of a checkpoint's reader.
"""
