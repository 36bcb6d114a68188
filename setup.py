"""Builds the C kernels (actors/kernels). Everything else is in pyproject.toml.

Without a C compiler the package installs all the same and computes with torch's own products.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "actors.kernels._linear",
            sources=["actors/kernels/linear.c"],
            extra_compile_args=["-O3", "-fno-semantic-interposition"],
            optional=True,
        )
    ]
)
