"""From logits to tokens: penalties, filters, a random draw per row, reported log-probabilities.

Open `sampler.py` first: it defines what a row draws. `cuda_sampler.py` does the same for all rows at once.
"""
