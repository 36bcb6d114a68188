"""Random weights in the shapes of known models, without a file, for benchmarks and tests.

Open `dummy_reader.py` first: it stands in for a checkpoint's reader.
"""
