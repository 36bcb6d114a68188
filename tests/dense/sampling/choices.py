"""The ways to choose tokens that are available on this machine."""

from __future__ import annotations

import pytest

from actors.dense.sampling.cpu_choice import choose_by_kernels, choose_by_torch
from actors.kernels.library import load

NO_KERNELS = pytest.mark.skipif(load() is None, reason="no kernels here")
CHOICES = [
    pytest.param(choose_by_torch, id="torch"),
    pytest.param(choose_by_kernels, id="kernels", marks=NO_KERNELS),
]
