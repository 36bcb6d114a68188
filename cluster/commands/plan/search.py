"""The search for a plan: algorithm 1 of MegaScale-Infer (arXiv 2504.02263, section 4) over the layouts of
this cluster.

For every number of dense actors, expert actors and micro-batches, the search finds the largest batch whose
step is within the target and whose cache fits. Without a rate it takes the layout with the most tokens per
second and GPU, as the paper does; with a rate it takes the layout with the fewest GPUs that sustains the
rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from cluster.commands.plan.capacity import cache_sequences, cache_tokens
from cluster.commands.plan.demand import Demand, NoPlanError
from cluster.commands.plan.hardware import Hardware
from cluster.commands.plan.prefill import prefill_share
from cluster.commands.plan.shape import Shape
from cluster.commands.plan.step import Layout, StepCost, step_cost

_HOST_EXPERT_ACTORS = (0, 1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A layout and what it does under the demanded load."""

    layout: Layout
    batch: int
    """Sequences that decode together on one dense actor at the rate; without a rate, the largest number."""
    max_batch: int
    """The largest batch within target and cache; set `max_num_sequences` to this value."""
    cache_tokens: int
    """Tokens that fit into the cache of one dense actor."""
    cache_sequences: int
    """Sequences of the context's length that fit into the cache of one dense actor."""
    step: StepCost
    inter_token_seconds: float
    """Time of a step plus the share of time that prompts take."""
    prefill_share: float
    """Share of the time of the busiest actors that prompts take."""
    tokens_per_second: float
    """Output tokens of all actors together, at `batch`."""
    tokens_per_second_per_gpu: float
    batch_limit: str
    """What limits `max_batch`: "cache memory", "target latency" or "max_num_sequences"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """One layout with the figures that do not depend on the batch."""

    layout: Layout
    num_gpus: int
    cache_tokens: int
    cache_sequences: int
    max_sequences: int
    prefill_share: float


def find_plan(shape: Shape, hardware: Hardware, demand: Demand) -> Plan:
    """The best plan. Raises NoPlanError if memory, rate or target cannot be met within `max_gpus`."""
    demand.check_model(shape)
    candidates = [_candidate(shape, hardware, demand, layout) for layout in layouts(hardware, demand)]
    if not candidates:
        raise NoPlanError(
            f"max_gpus is {demand.max_gpus}, expected room for the actors and replicas that are asked for"
        )
    fitting = [candidate for candidate in candidates if candidate.max_sequences > 0]
    if not fitting:
        raise _memory_error(shape, hardware, demand)
    able = [c for c in fitting if c.prefill_share < 1 and _sustains(shape, hardware, demand, c, None)]
    if not able:
        raise _rate_error(shape, hardware, demand, fitting)
    plans = [plan for c in able if (plan := _plan(shape, hardware, demand, c)) is not None]
    if not plans:
        raise _target_error(shape, hardware, demand, able)
    best = min(plans, key=lambda plan: _preference(plan, demand))
    return _with_second_copies(shape, hardware, demand, best)


def layouts(hardware: Hardware, demand: Demand) -> Iterator[Layout]:
    """All layouts that the demand allows, with the fewest replicas that it allows."""
    is_host = hardware.kind == "cpu"
    if is_host and demand.dense_actors not in (None, 1):
        raise ValueError(f"dense_actors is {demand.dense_actors}, expected 1 on a CPU host")
    num_replicas = demand.expert_replicas or 1
    expert_counts = _HOST_EXPERT_ACTORS if is_host else range(17)
    for num_experts in expert_counts if demand.expert_actors is None else (demand.expert_actors,):
        if num_replicas > max(1, num_experts):
            continue
        most = 1 if is_host else demand.max_gpus - num_experts
        for num_dense in range(1, most + 1) if demand.dense_actors is None else (demand.dense_actors,):
            if num_dense > most:
                continue
            most_micro = 1 if is_host or num_experts == 0 else demand.max_micro_batches
            for micro_batches in range(1, most_micro + 1):
                yield Layout(
                    dense_actors=num_dense,
                    expert_actors=num_experts,
                    expert_replicas=num_replicas,
                    micro_batches=micro_batches,
                )


def _candidate(shape: Shape, hardware: Hardware, demand: Demand, layout: Layout) -> _Candidate:
    num_tokens = cache_tokens(shape, hardware, layout)
    num_sequences = cache_sequences(num_tokens, demand.context_tokens)
    return _Candidate(
        layout=layout,
        num_gpus=1 if hardware.kind == "cpu" else layout.num_processors,
        cache_tokens=num_tokens,
        cache_sequences=num_sequences,
        max_sequences=min(num_sequences, demand.max_num_sequences),
        prefill_share=prefill_share(shape, hardware, layout, demand),
    )


def _cost(shape: Shape, hardware: Hardware, demand: Demand, candidate: _Candidate, batch: int) -> StepCost:
    return step_cost(shape, hardware, candidate.layout, batch, demand.seen_tokens)


def _inter_token(candidate: _Candidate, cost: StepCost) -> float:
    return cost.seconds / (1.0 - candidate.prefill_share)


def _sustains(
    shape: Shape, hardware: Hardware, demand: Demand, candidate: _Candidate, batch: int | None
) -> bool:
    """Whether batches of this size (None: the largest) produce tokens as fast as the rate requires."""
    if demand.rate is None:
        return True
    size = candidate.max_sequences if batch is None else batch
    seconds = _inter_token(candidate, _cost(shape, hardware, demand, candidate, size))
    return candidate.layout.dense_actors * size / seconds >= demand.rate * demand.output_tokens


def _plan(shape: Shape, hardware: Hardware, demand: Demand, candidate: _Candidate) -> Plan | None:
    """The plan for one layout; None if no batch meets the target, or none within the target sustains the
    rate."""
    target = demand.target_seconds

    def is_late(batch: int) -> bool:
        seconds = _inter_token(candidate, _cost(shape, hardware, demand, candidate, batch))
        return target is not None and seconds > target

    if is_late(1):
        return None
    most = candidate.max_sequences
    max_batch = _first(is_late, most) - 1
    if not _sustains(shape, hardware, demand, candidate, max_batch):
        return None
    batch = max_batch
    if demand.rate is not None:
        batch = min(max_batch, _first(partial(_sustains, shape, hardware, demand, candidate), max_batch))
    cost = _cost(shape, hardware, demand, candidate, batch)
    seconds = _inter_token(candidate, cost)
    tokens_per_second = candidate.layout.dense_actors * batch / seconds
    if demand.rate is not None:
        tokens_per_second = min(tokens_per_second, demand.rate * demand.output_tokens)
    return Plan(
        layout=candidate.layout,
        batch=batch,
        max_batch=max_batch,
        cache_tokens=candidate.cache_tokens,
        cache_sequences=candidate.cache_sequences,
        step=cost,
        inter_token_seconds=seconds,
        prefill_share=candidate.prefill_share,
        tokens_per_second=tokens_per_second,
        tokens_per_second_per_gpu=tokens_per_second / candidate.num_gpus,
        batch_limit="target latency"
        if max_batch < most
        else ("cache memory" if most < demand.max_num_sequences else "max_num_sequences"),
    )


def _first(is_so: Callable[[int], bool], most: int) -> int:
    """The smallest number from 1 to `most` for which `is_so` holds; `most + 1` if there is none.

    `is_so` must hold for all larger numbers too, since the search is binary.
    """
    low, high = 1, most + 1
    while low < high:
        middle = (low + high) // 2
        if is_so(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _preference(plan: Plan, demand: Demand) -> tuple[float, ...]:
    """Sort key of a plan; the lowest is best. Of equal plans the one with fewer micro-batches wins."""
    layout = plan.layout
    tie = (float(layout.micro_batches), float(layout.expert_actors))
    if demand.rate is None:
        return (-plan.tokens_per_second_per_gpu, float(layout.num_processors), *tie)
    return (plan.tokens_per_second / plan.tokens_per_second_per_gpu, plan.inter_token_seconds, *tie)


def _with_second_copies(shape: Shape, hardware: Hardware, demand: Demand, plan: Plan) -> Plan:
    """The plan with two copies of every expert, if they need no further GPU and meet the same demand; else
    the plan.

    With two copies the death of an expert actor costs only a moment.
    """
    is_open = demand.expert_replicas is None and hardware.kind == "gpu" and plan.layout.expert_actors >= 2
    if not is_open:
        return plan
    layout = replace(plan.layout, expert_replicas=2)
    candidate = _candidate(shape, hardware, demand, layout)
    if candidate.max_sequences == 0:
        return plan
    return _plan(shape, hardware, demand, candidate) or plan


def _memory_error(shape: Shape, hardware: Hardware, demand: Demand) -> NoPlanError:
    dense = shape.dense_bytes(hardware.bf16_weight_share)
    weights = dense + shape.num_experts * shape.num_layers * shape.expert_bytes(hardware.bf16_weight_share)
    cache = demand.context_tokens * shape.kv_bytes_per_token
    return NoPlanError(
        f"memory_gb is {hardware.memory_bytes / 1e9:g} and max_gpus {demand.max_gpus}, "
        f"expected room for weights of {weights / 1e9:.4g} GB ({dense / 1e9:.3g} GB of them in every dense "
        f"actor) and a cache of {cache / 1e9:.3g} GB for one sequence of {demand.context_tokens} tokens: "
        "no layout has it"
    )


def _rate_error(shape: Shape, hardware: Hardware, demand: Demand, fitting: list[_Candidate]) -> NoPlanError:
    """The error that names the highest rate of any layout.

    The share of time for prompts grows with the rate, so the rate is the solution of rate = X * (1 - s *
    rate) / output, with X tokens per second without prompts and a share s per request and second.
    """
    assert demand.rate is not None
    best, name = 0.0, ""
    for candidate in fitting:
        cost = _cost(shape, hardware, demand, candidate, candidate.max_sequences)
        decode = candidate.layout.dense_actors * candidate.max_sequences / cost.seconds / demand.output_tokens
        share = candidate.prefill_share / demand.rate
        rate = decode / (1 + decode * share)
        if rate > best:
            best, name = rate, cost.bound_by if decode * share < 1 else "compute of prompts"
    return NoPlanError(
        f"rate is {demand.rate:g}, expected at most {_down(best):.4g} requests per second "
        f"on {_where(hardware, demand)}: bound by {name}"
    )


def _target_error(shape: Shape, hardware: Hardware, demand: Demand, able: list[_Candidate]) -> NoPlanError:
    """The error that names the shortest time between tokens at which some layout still sustains the rate."""
    assert demand.target_seconds is not None
    best, name = float("inf"), ""
    for candidate in able:
        batch = _first(partial(_sustains, shape, hardware, demand, candidate), candidate.max_sequences)
        cost = _cost(shape, hardware, demand, candidate, min(batch, candidate.max_sequences))
        if (seconds := _inter_token(candidate, cost)) < best:
            best, name = seconds, cost.bound_by
    return NoPlanError(
        f"target_latency is {demand.target_seconds * 1e3:.4g} ms, expected at least {_up(best * 1e3):.4g} ms"
        + ("" if demand.rate is None else f" at {demand.rate:g} requests per second")
        + f" on {_where(hardware, demand)}: bound by {name}"
    )


def _where(hardware: Hardware, demand: Demand) -> str:
    return "this host" if hardware.kind == "cpu" else f"up to {demand.max_gpus} {hardware.name} (max_gpus)"


def _up(value: float) -> float:
    """Round up, so that the displayed number can be met."""
    return float(f"{value * 1.001:.4g}")


def _down(value: float) -> float:
    """Round down, so that the displayed number can be met."""
    return float(f"{value * 0.999:.4g}")
