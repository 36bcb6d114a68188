"""Triton kernels for CUDA. Nothing imports a module with kernels but where `has_triton` says that they can be used."""
