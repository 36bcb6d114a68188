"""LongRoPE, per sequence.

Legend: T tokens, D head dimension, A heads (queries or keys).

    inv_freq_i = 1 / (factor_i * theta ** (2 i / D))

The factors are those of the short or of the long list, and cos and sin are scaled by that list's mscale (Ding
et al. 2024, LongRoPE, as the checkpoint's own modelling code has it). Everything here is float32, angles
included: float64 angles would move log-probabilities by more than the project's tolerance.
"""

from __future__ import annotations

from typing import TypeAlias

import torch

from actors.checkpoint.config import RopeConfig

Tables: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""cos and sin, each [T, 1, D / 2] float32 and contiguous."""


class RotaryEmbedding:
    """The two lists of frequencies of one model on one device."""

    def __init__(self, config: RopeConfig, head_dim: int, device: torch.device) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        factors = torch.tensor([config.short_factor, config.long_factor], dtype=torch.float32)
        inv_freq = 1.0 / (factors * config.theta**exponents)
        self._inv_freq = inv_freq.to(device)  # [2, D / 2]: row 0 short, row 1 long
        self._mscale = torch.tensor(
            [[config.short_mscale], [config.long_mscale]], dtype=torch.float32, device=device
        )

    def tables(self, positions: torch.Tensor, is_long: torch.Tensor) -> Tables:
        """cos and sin, each [T, 1, D / 2] float32, for positions [T] and lists is_long [T] (int64; 1 is the
        long list)."""
        angles = positions.float()[:, None] * self._inv_freq[is_long]
        mscale = self._mscale[is_long]
        return (angles.cos() * mscale)[:, None], (angles.sin() * mscale)[:, None]


class RotaryTables:
    """The tables of all positions from 0 on, up to the largest number of positions that was asked for."""

    _AT_FIRST = 4096

    def __init__(self, rope: RotaryEmbedding, is_long: bool) -> None:
        self._rope, self._is_long = rope, is_long
        self._num_positions = 0
        self._make(0)

    def addresses(self, num_positions: int) -> tuple[int, int]:
        """The addresses of cos and sin [P, D / 2], where P is at least `num_positions`. They are valid until
        the next call."""
        if num_positions > self._num_positions:
            more = max(num_positions, 2 * self._num_positions, self._AT_FIRST)
            self._make(more)
        return self._addresses

    def _make(self, num_positions: int) -> None:
        positions = torch.arange(num_positions)
        self._num_positions = num_positions
        self._tables = self._rope.tables(positions, torch.full_like(positions, self._is_long))
        cos, sin = self._tables
        self._addresses = cos.data_ptr(), sin.data_ptr()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [T, A, D] by the tables: feature i pairs with feature i + D / 2. The result has x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
