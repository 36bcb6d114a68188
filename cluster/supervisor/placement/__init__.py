"""Which expert actor holds which expert.

Open `placement.py` first, which decides; `reconciler.py` has the expert actors load and drop experts.
"""
