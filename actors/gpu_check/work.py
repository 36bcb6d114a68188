"""Computes the least work of a step, and so the shortest time in which a device can do it. Pure.

bytes   every weight that the step uses, once, and the keys and values that its tokens see
flops   2 per weight and token, and 4 per query head feature and visible position
limit   the longer of bytes / bandwidth and flops / peak
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.checkpoint.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """The peak rates of a device."""

    bytes_per_second: float
    flops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The work of one step, or of several steps together."""

    num_bytes: float
    flops: float

    def limit_seconds(self, device: Device) -> float:
        return max(self.num_bytes / device.bytes_per_second, self.flops / device.flops)

    def __add__(self, other: Work) -> Work:
        return Work(num_bytes=self.num_bytes + other.num_bytes, flops=self.flops + other.flops)


def step_work(
    config: ModelConfig,
    item_bytes: int,
    expert_item_bytes: float,
    spans: list[tuple[int, int]],
    num_logits: int,
    num_experts: int,
) -> Work:
    """Return the work of a step over spans (start, end) of positions, one span per sequence.

    `num_logits` rows go to the head. `num_experts` is the number of experts with rows, summed over the
    layers. `item_bytes` are the bytes of one weight, key or value, `expert_item_bytes` those of one weight of
    an expert.
    """
    num_tokens = sum(end - start for start, end in spans)
    expert = 3 * config.hidden_size * config.intermediate_size
    head = config.vocab_size * config.hidden_size
    dense = config.num_layers * _dense_weights(config)
    seen = config.num_layers * sum(_num_seen(config, start, end) for start, end in spans)
    context = config.num_layers * sum(_context(config, start, end) for start, end in spans)
    active = dense + config.num_layers * config.num_experts_per_token * expert
    return Work(
        num_bytes=expert_item_bytes * num_experts * expert
        + item_bytes * (dense + head + 2 * config.kv_size * context),
        flops=2 * (num_tokens * active + num_logits * head) + 4 * config.num_heads * config.head_dim * seen,
    )


def _dense_weights(config: ModelConfig) -> int:
    """Return the number of weights of one layer's projections and gate."""
    hidden = config.hidden_size
    return hidden * (2 * hidden + 2 * config.kv_size) + config.num_experts * hidden


def _num_seen(config: ModelConfig, start: int, end: int) -> int:
    """Return the number of pairs of a position of the span and a position that it sees."""
    window = config.sliding_window
    return sum(
        position + 1 if window is None else min(position + 1, window) for position in range(start, end)
    )


def _context(config: ModelConfig, start: int, end: int) -> int:
    """Return the number of positions whose keys and values the span reads."""
    window = config.sliding_window
    return end if window is None else end - max(0, start + 1 - window)
