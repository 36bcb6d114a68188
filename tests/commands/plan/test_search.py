"""Tests the search: what a plan promises, and the reason if there is no plan."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.checkpoint.dummy.presets import preset_config
from actors.dense.scheduling import kv_capacity
from cluster.commands.plan.capacity import CPU_CACHE_SHARE, CPU_MAX_CACHE_BYTES, GPU_CACHE_SHARE
from cluster.commands.plan.demand import Demand, NoPlanError
from cluster.commands.plan.hardware import NAMES, hardware
from cluster.commands.plan.search import Plan, find_plan
from cluster.commands.plan.shape import model_shape

PHI = model_shape(preset_config("phi-3.5-moe"))
MID = model_shape(preset_config("mid"))
GPUS = [name for name in NAMES if name != "cpu"]


def demand(**changes: Any) -> Demand:
    fixed = {"prompt_tokens": 512, "output_tokens": 256, "context_tokens": 1024, "max_gpus": 20}
    return Demand(**(fixed | changes))


def gpus_for(name: str, **changes: Any) -> float:
    """The number of GPUs; infinity if there is no plan."""
    try:
        return find_plan(PHI, hardware(name), demand(**changes)).layout.num_processors
    except NoPlanError:
        return math.inf


def test_the_actors_rules_about_memory_are_the_same() -> None:
    assert (GPU_CACHE_SHARE, CPU_CACHE_SHARE, CPU_MAX_CACHE_BYTES) == (
        kv_capacity._CUDA_SHARE, kv_capacity._CPU_SHARE, kv_capacity._CPU_MAX_BYTES
    )  # fmt: skip


@pytest.mark.parametrize("name", GPUS)
def test_weights_and_cache_fit(name: str) -> None:
    machine = hardware(name)
    plan = find_plan(PHI, machine, demand())
    layout, cache_bytes = plan.layout, plan.cache_tokens * PHI.kv_bytes_per_token
    slots = math.ceil(16 * layout.expert_replicas / max(1, layout.expert_actors))
    expert_bytes = slots * 32 * PHI.expert_bytes()
    assert plan.batch * 1024 <= plan.cache_tokens
    assert plan.cache_sequences == plan.cache_tokens // 16 // 64
    if layout.expert_actors:
        assert expert_bytes <= machine.memory_bytes
        assert PHI.dense_bytes() + cache_bytes <= machine.memory_bytes
    else:
        assert PHI.dense_bytes() + expert_bytes + cache_bytes <= machine.memory_bytes


def test_the_whole_model_on_one_gpu_where_it_fits() -> None:
    plan = find_plan(PHI, hardware("h200"), demand(rate=5.0))
    assert plan.layout.num_processors == 1 and plan.layout.expert_actors == 0
    assert find_plan(PHI, hardware("h100"), demand(rate=5.0)).layout.expert_actors >= 2


def test_a_second_copy_of_every_expert_where_memory_has_it() -> None:
    plan = find_plan(PHI, hardware("h100"), demand())
    assert plan.layout.expert_replicas == 2
    assert find_plan(PHI, hardware("h100"), demand(expert_replicas=1)).layout.expert_replicas == 1


def test_what_is_asked_for_exactly_is_kept() -> None:
    plan = find_plan(PHI, hardware("h100"), demand(dense_actors=3, expert_actors=5, max_micro_batches=1))
    assert (plan.layout.dense_actors, plan.layout.expert_actors, plan.layout.micro_batches) == (3, 5, 1)


@given(st.sampled_from(GPUS), st.floats(0.1, 300), st.floats(1, 4))
@settings(max_examples=8)
def test_a_higher_rate_never_needs_fewer_gpus(name: str, rate: float, factor: float) -> None:
    assert gpus_for(name, rate=rate) <= gpus_for(name, rate=rate * factor)


@given(st.sampled_from(GPUS), st.floats(0.01, 1), st.floats(1, 4))
@settings(max_examples=8)
def test_a_looser_target_never_needs_more_gpus(name: str, target: float, factor: float) -> None:
    assert gpus_for(name, rate=20, target_seconds=target * factor) <= gpus_for(
        name, rate=20, target_seconds=target
    )


@given(st.sampled_from(GPUS), st.sampled_from(["bandwidth", "flops", "link_bandwidth"]), st.floats(1, 4))
@settings(max_examples=8)
def test_better_hardware_never_yields_less(name: str, field: str, factor: float) -> None:
    wanted = demand(target_seconds=0.06, expert_replicas=1)
    machine = hardware(name)
    better = hardware(name, **{field: getattr(machine, field) * factor})
    before, after = (find_plan(PHI, each, wanted).tokens_per_second_per_gpu for each in (machine, better))
    assert after >= before * (1 - 1e-9)


@given(st.sampled_from(NAMES), st.floats(0.02, 1), st.one_of(st.none(), st.floats(0.01, 200)))
@settings(max_examples=15)
def test_a_plan_keeps_its_promises(name: str, target: float, rate: float | None) -> None:
    wanted = demand(target_seconds=target, rate=rate)
    try:
        plan: Plan = find_plan(MID if name == "cpu" else PHI, hardware(name), wanted)
    except NoPlanError:
        return
    assert plan.inter_token_seconds <= target
    assert 1 <= plan.batch <= plan.max_batch <= plan.cache_sequences
    decoded = plan.layout.dense_actors * plan.batch / plan.inter_token_seconds
    if rate is not None:
        assert plan.tokens_per_second == pytest.approx(rate * 256)
        assert decoded >= rate * 256 * (1 - 1e-9)
    else:
        assert plan.tokens_per_second == pytest.approx(decoded)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        pytest.param(
            "h100",
            {"target_seconds": 0.002},
            r"target_latency is 2 ms, expected at least .* bound by",
            id="target",
        ),
        pytest.param("h100", {"rate": 1e5}, r"rate is 100000, expected at most .* bound by", id="rate"),
        pytest.param(
            "l40s",
            {"max_gpus": 2},
            r"memory_gb is 48 and max_gpus 2, expected room for weights of 83.75 GB",
            id="memory",
        ),
        pytest.param(
            "h100",
            {"max_gpus": 4, "dense_actors": 2, "expert_actors": 4},
            r"max_gpus is 4, expected room",
            id="pins",
        ),
        pytest.param("cpu", {}, r"memory_gb is 24", id="host-memory"),
    ],
)
def test_no_plan_says_why(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NoPlanError, match=message):
        find_plan(PHI, hardware(name), demand(**changes))


@pytest.mark.parametrize(("name", "rate"), [("h100", None), ("h100", 30.0), ("b200", 100.0)])
def test_the_nearest_target_that_an_error_names_can_be_met(name: str, rate: float | None) -> None:
    with pytest.raises(NoPlanError) as caught:
        find_plan(PHI, hardware(name), demand(target_seconds=0.001, rate=rate))
    nearest = float(str(caught.value).split("at least ")[1].split(" ms")[0]) / 1e3
    assert (
        find_plan(PHI, hardware(name), demand(target_seconds=nearest, rate=rate)).inter_token_seconds
        <= nearest
    )
    with pytest.raises(NoPlanError):
        find_plan(PHI, hardware(name), demand(target_seconds=nearest * 0.99, rate=rate))


def test_the_highest_rate_that_an_error_names_can_be_met() -> None:
    with pytest.raises(NoPlanError) as caught:
        find_plan(PHI, hardware("a100"), demand(rate=1e5))
    highest = float(str(caught.value).split("at most ")[1].split(" requests")[0])
    assert find_plan(PHI, hardware("a100"), demand(rate=highest)).prefill_share < 1
    with pytest.raises(NoPlanError):
        find_plan(PHI, hardware("a100"), demand(rate=highest * 1.01))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_tokens": 700}, "context_tokens is 700, expected at least prompt_tokens"),
        ({"context_tokens": 200_000}, "context_tokens is 200000, expected at most the model's 131072"),
        ({"rate": -1.0}, "rate is -1, expected a finite number above 0"),
        ({"target_seconds": math.inf}, "target_seconds is inf"),
        ({"expert_actors": 17}, "expert_actors is 17, expected at least 0 and at most 16"),
        (
            {"expert_actors": 2, "expert_replicas": 3},
            "expert_replicas is 3, expected at most expert_actors, 2",
        ),
        ({"prompt_tokens": 0}, "prompt_tokens is 0, expected at least 1"),
    ],
)
def test_a_demand_that_makes_no_sense_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_plan(PHI, hardware("h100"), demand(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bandwidth": 0.0}, "bandwidth is 0, expected a finite number above 0"),
        ({"flops_efficiency": 1.5}, "flops_efficiency is 1.5, expected above 0 and at most 1"),
        ({"step_overhead_seconds": -1.0}, "step_overhead_seconds is -1, expected 0 or more"),
        ({"overlap": 2.0}, "overlap is 2, expected from 0 to 1"),
    ],
)
def test_hardware_that_makes_no_sense_is_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hardware("h100", **changes)
    with pytest.raises(ValueError, match="gpu is 'h1000', expected one of h100"):
        hardware("h1000")
