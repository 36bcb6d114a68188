"""On any machine, the kernels compile for the GPU for which they were written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import (
    device,  # noqa: F401  Skips without Triton, and must be imported before Triton.
)

ROOT = Path(__file__).resolve().parents[2]
MOST_SHARED_BYTES = 227 * 1024
"""Largest shared memory of a program on sm_90, in bytes."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.compile_kernels"],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(": ") for line in done.stdout.splitlines()]
    names = {
        *("rotate_and_write", "attend", "merge_parts", "_route", "_add_norm", "_norm_and_route", "_one_row"),
        *("_sort", "_first", "_second", "_merge_two", "_weigh", "_weigh_and_add"),
    }
    assert {name for name, _ in lines} == names
    assert all(int(rest.split()[0]) <= MOST_SHARED_BYTES for _, rest in lines)
