"""Whole steps, or their ends, in one call: C kernels on CPUs, CUDA graphs on GPUs.

Open `cpu_step.py` first: all layers of a step in one call.
"""
