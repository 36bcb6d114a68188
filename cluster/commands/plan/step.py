"""Seconds of one decode step, by the cost model of MegaScale-Infer (arXiv 2504.02263, section 4).

    Ta   dense part of one layer: attention and router, for one micro-batch of one dense actor
    Te   experts of one layer on the busiest expert actor, for one micro-batch of every dense actor
    Tc   the exchange, one way
    Tf   max(Ta, Te)
    m    micro-batches, L layers

The paper (equations 1 to 6) fits Ta = k1 * b + k2 and Te = k3 * b + k4 to measurements. Here both follow from
a roofline: the bytes to read and the operations to compute. So k2 and k4 are the time to read weights, and k4
is less for a batch that touches few experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.commands.plan.hardware import Hardware
from cluster.commands.plan.routing import expert_share
from cluster.commands.plan.shape import Shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How many actors of each kind there are, and how they share the work."""

    dense_actors: int
    expert_actors: int
    """0 means that every dense actor holds all experts (the exchange `local`)."""
    expert_replicas: int = 1
    micro_batches: int = 1

    @property
    def num_processors(self) -> int:
        return self.dense_actors + self.expert_actors


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """Cost of one step of a batch, in seconds."""

    seconds: float
    dense_seconds: float
    """Ta."""
    expert_seconds: float
    """Te."""
    link_seconds: float
    """Tc."""
    head_seconds: float
    bound_by: str
    """The resource that takes most of the step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Processor:
    """What a part of a step runs on. The rates include the efficiencies."""

    bandwidth: float
    flops: float
    overlap: float
    bf16_weight_share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    seconds: float
    bound_by: str


def step_cost(
    shape: Shape, hardware: Hardware, layout: Layout, batch: int, context_tokens: float
) -> StepCost:
    """Cost of one decode step of `batch` sequences per dense actor, each attending to `context_tokens`
    positions."""
    if hardware.kind == "cpu":
        return _host_step(shape, hardware, layout, batch, context_tokens)
    return _cluster_step(shape, hardware, layout, batch, context_tokens)


def _cluster_step(
    shape: Shape, hardware: Hardware, layout: Layout, batch: int, context_tokens: float
) -> StepCost:
    """Cost of a step if every actor has its own GPU.

        T = (Ta + Te + 2 Tc) + (L - 1) * max(m * Tf, m * Tc, Ta + Te + 2 Tc) + (m - 1) * Tf

    The terms are the first layer of the first micro-batch, one layer per period, and the last layer of the
    other micro-batches. If m * Tf >= Ta + Te + 2 Tc, computing hides the exchange (the paper's m >= 2 (1 + Tc
    / Tf) for Ta = Te), and T is the paper's equation 5, (Ta + Te + 2 Tc) + Tf * (m * L - 1). With m = 1, T is
    L * (Ta + Te + 2 Tc).
    """
    gpu = _Processor(
        bandwidth=hardware.bandwidth * hardware.bandwidth_efficiency,
        flops=hardware.flops * hardware.flops_efficiency,
        overlap=hardware.overlap,
        bf16_weight_share=hardware.bf16_weight_share,
    )
    m, is_local = layout.micro_batches, layout.expert_actors == 0
    rows = math.ceil(batch / m)
    dense = _dense_layer(shape, gpu, rows, context_tokens, hardware.layer_overhead_seconds)
    head = _head(shape, gpu, rows)
    num_tokens = rows if is_local else rows * layout.dense_actors
    num_read, num_rows = expert_share(shape, num_tokens, max(1, layout.expert_actors), layout.expert_replicas)
    experts = _experts(shape, gpu, num_read, num_rows, hardware.layer_overhead_seconds)
    link = _Part(seconds=0.0, bound_by="link latency")
    if not is_local:
        sent = max(rows * min(shape.num_experts_per_token, layout.expert_actors), num_rows)
        link = _link(shape, hardware, sent)
    way = dense.seconds + experts.seconds + 2 * link.seconds
    slowest = max(dense.seconds, experts.seconds)
    period = max(m * slowest, m * link.seconds, way)
    seconds = way + (shape.num_layers - 1) * period + (m - 1) * slowest
    parts = {"dense": dense, "expert": experts, "link": link}
    weights = {
        "dense": dense.seconds,
        "expert": experts.seconds,
        "link": link.seconds * (2 if period == way else 1),
    }
    binding = parts[max(weights, key=lambda name: weights[name])]
    rest = _Part(seconds=m * head.seconds + hardware.step_overhead_seconds, bound_by="head and step overhead")
    if rest.seconds > shape.num_layers * max(weights.values()):
        binding = rest
    return StepCost(
        seconds=seconds + rest.seconds,
        dense_seconds=dense.seconds,
        expert_seconds=experts.seconds,
        link_seconds=link.seconds,
        head_seconds=head.seconds,
        bound_by=binding.bound_by,
    )


def _host_step(
    shape: Shape, hardware: Hardware, layout: Layout, batch: int, context_tokens: float
) -> StepCost:
    """Cost of a step if all actors are processes of one host and share its cores and memory.

    A step reads attention, head and the touched experts once, and the keys and values of each sequence. The
    process that computes uses all cores while the others wait, through its spare threads
    (`actors/kernels/c/pool.c`).

        T = L * (Ta + Te + 2 Tc) + head + overhead
    """
    host = _host(hardware)
    dense = _dense_layer(shape, host, batch, context_tokens, hardware.layer_overhead_seconds)
    head = _head(shape, host, batch)
    num_read, num_rows = expert_share(shape, batch, 1, 1)
    experts = _experts(shape, host, num_read, num_rows, hardware.layer_overhead_seconds)
    link = _Part(seconds=0.0, bound_by="link latency")
    if layout.expert_actors:
        link = _link(shape, hardware, batch * shape.num_experts_per_token)
    parts = (
        (shape.num_layers * dense.seconds, dense.bound_by),
        (shape.num_layers * experts.seconds, experts.bound_by),
        (shape.num_layers * 2 * link.seconds, link.bound_by),
        (head.seconds + hardware.step_overhead_seconds, "head and step overhead"),
    )
    return StepCost(
        seconds=sum(seconds for seconds, _ in parts),
        dense_seconds=dense.seconds,
        expert_seconds=experts.seconds,
        link_seconds=link.seconds,
        head_seconds=head.seconds,
        bound_by=max(parts)[1],
    )


def _host(hardware: Hardware) -> _Processor:
    return _Processor(
        bandwidth=min(1.0, hardware.cores * hardware.core_bandwidth_share)
        * hardware.bandwidth
        * hardware.bandwidth_efficiency,
        flops=hardware.flops * hardware.flops_efficiency,
        overlap=hardware.overlap,
        bf16_weight_share=hardware.bf16_weight_share,
    )


def _dense_layer(
    shape: Shape, processor: _Processor, rows: int, context_tokens: float, overhead_seconds: float
) -> _Part:
    """Ta. A layer reads its weights once and the keys and values of every sequence.

    It computes two operations per weight and row, and 4 * H per row and position (scores and sums).
    """
    seen = shape.seen(context_tokens)
    weight_bytes = shape.dense_layer_weights * shape.weight_bytes(processor.bf16_weight_share)
    num_bytes = weight_bytes + rows * seen * 2 * shape.kv_size * shape.item_bytes
    flops = rows * (2 * shape.dense_layer_weights + 4 * shape.hidden_size * seen)
    return _roofline("dense", processor, num_bytes, flops, overhead_seconds)


def _experts(
    shape: Shape, processor: _Processor, num_read: float, num_rows: float, overhead_seconds: float
) -> _Part:
    """Te. A layer reads each touched expert once and computes two operations per weight and row."""
    flops = 2 * num_rows * shape.expert_weights
    num_bytes = num_read * shape.expert_bytes(processor.bf16_weight_share)
    return _roofline("expert", processor, num_bytes, flops, overhead_seconds)


def _head(shape: Shape, processor: _Processor, rows: int) -> _Part:
    flops = 2 * rows * shape.head_weights
    num_bytes = shape.head_weights * shape.weight_bytes(processor.bf16_weight_share)
    return _roofline("dense", processor, num_bytes, flops, 0.0)


def _link(shape: Shape, hardware: Hardware, num_rows: float) -> _Part:
    """Tc: a latency plus the transfer of the busier side's rows (the paper's equation 6 without its
    utilisation curve)."""
    transfer = num_rows * shape.hidden_size * shape.item_bytes / hardware.link_bandwidth
    latency = hardware.link_latency_seconds
    return _Part(
        seconds=latency + transfer, bound_by="link bandwidth" if transfer > latency else "link latency"
    )


def _roofline(
    name: str, processor: _Processor, num_bytes: float, flops: float, overhead_seconds: float
) -> _Part:
    """The longer of reading and computing, plus the part of the shorter one that does not overlap.

    Source: Williams et al., "Roofline", 2009.
    """
    reading, computing = num_bytes / processor.bandwidth, flops / processor.flops
    seconds = max(reading, computing) + (1 - processor.overlap) * min(reading, computing)
    causes = ((reading, "memory bandwidth"), (computing, "compute"), (overhead_seconds, "overhead"))
    return _Part(seconds=seconds + overhead_seconds, bound_by=f"{name} {max(causes)[1]}")
