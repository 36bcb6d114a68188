"""One layer's experts, one file for each kind of matrix product. All fulfil `LayerExperts` of ../experts.py.

Open cpu_kernels.py first: it is what CPUs use.
"""
