"""From logits to tokens: penalties, filters, one random draw per row, reported log-probabilities.

Open `sampler.py` first: it defines what a row samples. `cuda_sampler.py` does the same for all rows at once.
"""
