"""Triton kernels for CUDA. They take tensors and import nothing of `dense` or `expert`.

Import a module with kernels only if `actors.devices.has_triton` allows it. Open `add_norm.py` first: it is a
short kernel with its launch.
"""
