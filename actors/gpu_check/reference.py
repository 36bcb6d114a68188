"""The parts of a layer in float32, written as plainly as possible, as the reference for the device's results.

This file shares no code with the code that serves.

Legend: T tokens, S keys, H hidden, A query heads, G key-value heads, D head dimension, E experts,
K = 2 experts per token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from actors.checkpoint.config import ModelConfig


def rotated(x: torch.Tensor, positions: torch.Tensor, config: ModelConfig, is_long: bool) -> torch.Tensor:
    """Return x [T, heads, D] float32 rotated to positions [T] with LongRoPE's long or short factors."""
    rope, half = config.rope, config.head_dim // 2
    factors = torch.tensor(rope.long_factor if is_long else rope.short_factor, device=x.device)
    mscale = rope.long_mscale if is_long else rope.short_mscale
    exponents = torch.arange(half, device=x.device).float() * 2 / config.head_dim
    angles = positions.float()[:, None, None] / (factors * rope.theta**exponents)
    cos, sin = angles.cos() * mscale, angles.sin() * mscale
    low, high = x[..., :half], x[..., half:]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Return the attention [T, A * D] of queries [T, A, D], the last T of S positions, to keys and values [S,
    G, D].

    All tensors are float32.
    """
    num_queries, num_heads, head_dim = queries.shape
    num_keys, num_groups, _ = keys.shape
    keys, values = (part.repeat_interleave(num_heads // num_groups, dim=1) for part in (keys, values))
    scores = torch.einsum("tad,sad->ats", queries, keys) / head_dim**0.5
    query_at = torch.arange(num_keys - num_queries, num_keys, device=queries.device)[:, None]
    key_at = torch.arange(num_keys, device=queries.device)
    is_seen = key_at <= query_at
    if window is not None:
        is_seen &= key_at > query_at - window
    shares = scores.masked_fill(~is_seen, float("-inf")).softmax(dim=-1)
    return torch.einsum("ats,sad->tad", shares, values).flatten(1)


def sparse_mixer(scores: torch.Tensor, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return expert ids [T, 2] and weights [T, 2] for scores [T, E] float32, computed token by token."""
    ids, weights = [], []
    for row in scores.tolist():
        values = torch.tensor(row)
        left = values.clone()
        for _ in range(2):
            best = left.max()
            chosen = int((left == best).nonzero()[0])
            is_far = (best - values) / torch.maximum(values.abs(), best) > 2 * jitter
            ids.append(chosen)
            weights.append(float(left.masked_fill(is_far, float("-inf")).softmax(dim=0)[chosen]))
            left[chosen] = float("-inf")
    shape = (len(scores), 2)
    return torch.tensor(ids).view(shape), torch.tensor(weights).view(shape)


def expert(rows: torch.Tensor, w1: torch.Tensor, w3: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """Return an expert's output [n, H] for rows [n, H], all float32."""
    return F.linear(F.silu(F.linear(rows, w1)) * F.linear(rows, w3), w2)
