"""Fast paths that compute a whole step, or its end, in one call: C kernels on CPUs, CUDA graphs on GPUs.

Open `cpu_step.py` first: it computes all layers of a step in one call.
"""
