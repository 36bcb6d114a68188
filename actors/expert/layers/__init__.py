"""The experts of one layer, one file for each kind of matrix product.

Each class fulfils the protocol `LayerExperts` of ../experts.py.

Open cpu_kernels.py first: it is what CPUs use.
"""
