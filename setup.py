"""Builds the C kernels (actors/kernels). Everything else is in pyproject.toml.

Without a C compiler the package installs all the same and computes with torch's own products.
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
            # Sums are fused where the code says so and nowhere else: results must not depend on the compiler's taste.
            extra_compile_args=["-O3", "-ffp-contract=off"],
            libraries=["m", "pthread"],
            optional=True,
        )
    ]
)
