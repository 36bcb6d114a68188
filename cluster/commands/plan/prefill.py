"""The share of the actors' time that prompts take. No token is decoded in that time."""

from __future__ import annotations

from cluster.commands.plan.demand import Demand
from cluster.commands.plan.hardware import Hardware
from cluster.commands.plan.shape import Shape
from cluster.commands.plan.step import Layout

_HOST_PRODUCTS, _HOST_ATTENTION = 0.85, 0.5
"""Shares of a CPU host's operations per second that products of many rows and attention reach. Attention sums
in float32."""


def prefill_share(shape: Shape, hardware: Hardware, layout: Layout, demand: Demand) -> float:
    """Share of time in which the busiest kind of actor computes prompts; above 1 it cannot keep up; 0 without
    a rate.

    Prompts are computed in chunks of about 2,000 tokens, which are bound by computing, so the time of a
    prompt token follows from its operations: two per weight, and attention to half of the prompt. A dense
    actor with one micro-batch waits while the experts compute its chunk.
    """
    if demand.rate is None:
        return 0.0
    tokens = demand.rate * demand.prompt_tokens
    if hardware.kind == "cpu":
        return tokens * host_prefill_seconds(shape, hardware, layout, demand.prompt_tokens)
    peak = hardware.flops * hardware.flops_efficiency
    products, attention, experts = _operations(shape, demand.prompt_tokens)
    dense, experts = (products + attention) / peak, experts / peak
    if layout.expert_actors == 0:
        return tokens * (dense + experts) / layout.dense_actors
    by_experts = experts / layout.expert_actors
    own = dense + (by_experts if layout.micro_batches == 1 else 0.0)
    return tokens * max(own / layout.dense_actors, by_experts)


def host_prefill_seconds(shape: Shape, hardware: Hardware, layout: Layout, prompt_tokens: int) -> float:
    """Seconds per prompt token on a CPU host, whose cores all serve the actor that computes at the time.

    Rows that go to expert actors and come back are included.
    """
    peak = hardware.flops * hardware.flops_efficiency
    products, attention, experts = _operations(shape, prompt_tokens)
    computing = ((products + experts) / _HOST_PRODUCTS + attention / _HOST_ATTENTION) / peak
    if layout.expert_actors == 0:
        return computing
    moved = 2 * shape.num_layers * shape.num_experts_per_token * shape.hidden_size * shape.item_bytes
    return computing + moved / hardware.link_bandwidth


def _operations(shape: Shape, prompt_tokens: int) -> tuple[float, float, float]:
    """Operations per prompt token in dense products, attention and experts; a token sees half of the prompt
    on average."""
    seen = shape.seen(prompt_tokens / 2)
    products = 2 * shape.num_layers * shape.dense_layer_weights
    attention = 4 * shape.num_layers * shape.hidden_size * seen
    experts = 2 * shape.num_layers * shape.num_experts_per_token * shape.expert_weights
    return products, attention, experts
