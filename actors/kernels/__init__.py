"""The project's own kernels for CPUs with AVX2 or AVX-512: C in `c/`, and its bindings in Python.

Open `library.py` first: it loads what was built at installation and says what each function takes.
"""
