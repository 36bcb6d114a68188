"""Kernels of a layer's experts: sort the rows by expert, multiply, weigh and add.

Open `products.py` first: the two products of each expert.
"""
