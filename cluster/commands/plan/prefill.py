"""What prompts take: a share of the actors' time, in which no token is decoded."""

from __future__ import annotations

from cluster.commands.plan.demand import Demand
from cluster.commands.plan.hardware import Hardware
from cluster.commands.plan.shape import Shape
from cluster.commands.plan.step import Layout

_HOST_PRODUCTS, _HOST_ATTENTION = 0.85, 0.5
"""Shares of a CPU host's operations per second that products of many rows and attention, which sums in float32, reach there."""


def prefill_share(shape: Shape, hardware: Hardware, layout: Layout, demand: Demand) -> float:
    """Share of time that the busiest kind of actor computes prompts at the rate; above 1 it cannot keep up; 0 without
    a rate.

    Prompts come in chunks of some 2,000 tokens, which computing bounds (DESIGN: micro-batches), so a prompt token takes its
    operations alone: two per weight, and attention to half of the prompt. A dense actor that has no second micro-batch
    waits while the experts compute its chunk.
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
    """Seconds that a prompt's token takes on a host, all of whose cores compute for whoever has something to compute, and whose
    rows go to expert actors and come back."""
    peak = hardware.flops * hardware.flops_efficiency
    products, attention, experts = _operations(shape, prompt_tokens)
    computing = ((products + experts) / _HOST_PRODUCTS + attention / _HOST_ATTENTION) / peak
    if layout.expert_actors == 0:
        return computing
    moved = 2 * shape.num_layers * shape.num_experts_per_token * shape.hidden_size * shape.item_bytes
    return computing + moved / hardware.link_bandwidth


def _operations(shape: Shape, prompt_tokens: int) -> tuple[float, float, float]:
    """Of a prompt's token in dense products, attention and experts; it sees half of the prompt."""
    seen = shape.seen(prompt_tokens / 2)
    products = 2 * shape.num_layers * shape.dense_layer_weights
    attention = 4 * shape.num_layers * shape.hidden_size * seen
    experts = 2 * shape.num_layers * shape.num_experts_per_token * shape.expert_weights
    return products, attention, experts
