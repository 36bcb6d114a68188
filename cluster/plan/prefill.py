"""What prompts take: a share of the actors' time, in which no token is decoded."""

from __future__ import annotations

from cluster.hosting import share_threads
from cluster.plan.demand import Demand
from cluster.plan.hardware import Hardware
from cluster.plan.shape import Shape
from cluster.plan.step import Layout


def prefill_share(shape: Shape, hardware: Hardware, layout: Layout, demand: Demand) -> float:
    """Share of time that the busiest kind of actor computes prompts at the rate; above 1 it cannot keep up; 0 without
    a rate.

    Prompts come in chunks of some 2,000 tokens, which computing bounds (DESIGN: micro-batches), so a prompt token takes its
    operations alone: two per weight, and attention to half of the prompt. A dense actor that has no second micro-batch
    waits while the experts compute its chunk.
    """
    if demand.rate is None:
        return 0.0
    peak = hardware.flops * hardware.flops_efficiency
    seen = shape.seen(demand.prompt_tokens / 2)
    dense = shape.num_layers * (2 * shape.dense_layer_weights + 4 * shape.hidden_size * seen) / peak
    experts = shape.num_layers * 2 * shape.num_experts_per_token * shape.expert_weights / peak
    tokens = demand.rate * demand.prompt_tokens
    if hardware.kind == "cpu":
        threads = share_threads(hardware.cores, layout.dense_actors, layout.expert_actors)
        return tokens * (dense * hardware.cores / min(threads.dense, hardware.cores) + experts)
    if layout.expert_actors == 0:
        return tokens * (dense + experts) / layout.dense_actors
    by_experts = experts / layout.expert_actors
    own = dense + (by_experts if layout.micro_batches == 1 else 0.0)
    return tokens * max(own / layout.dense_actors, by_experts)
