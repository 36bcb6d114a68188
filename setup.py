"""Builds the C kernels (actors/kernels). Everything else is in pyproject.toml.

Without a C compiler the package is installed without the kernels and computes with torch's own products.
"""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "actors.kernels._kernels",
            sources=[
                f"actors/kernels/c/{name}.c"
                for name in (
                    "exports",
                    "avx2",
                    "avx512",
                    "coded",
                    "pool",
                    "router",
                    "rows",
                    "serve",
                    "exchange",
                )
            ],
            depends=sorted(glob("actors/kernels/c/*.h")),
            # The compiler may not fuse products and sums on its own: results must not depend on the compiler.
            extra_compile_args=["-O3", "-ffp-contract=off"],
            libraries=["m", "pthread"],
            optional=True,
        )
    ]
)
