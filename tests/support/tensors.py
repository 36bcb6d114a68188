"""Tensors that tests compute with."""

from __future__ import annotations

import torch


def random(*shape: int) -> torch.Tensor:
    """Return normal numbers that depend on the shape alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
