"""Kernels of a layer's experts: they sort the rows by expert, multiply, weigh and add.

Open `products.py` first: it computes the two products of each expert.
"""
