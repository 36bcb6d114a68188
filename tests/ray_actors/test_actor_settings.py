"""Tests what each actor claims of its node, and how devices and threads are chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.protocol.settings import DenseSettings, ExpertSettings
from cluster.config.cluster_config import ClusterConfig
from cluster.ray_actors.actor_settings import (
    CPUS_PER_ACTOR,
    Fleet,
    bundle,
    choose_node,
    plan_actors,
    share_threads,
)

GPU_NODES = Fleet(
    num_nodes=3,
    cores_per_node=8,
    num_gpus=3,
    labels=frozenset({"CPU", "GPU", "phimoe_dense", "phimoe_expert"}),
)
CPU_NODE = Fleet(num_nodes=1, cores_per_node=2, num_gpus=0, labels=frozenset({"CPU"}))


def plan(fleet: Fleet, **keys: object) -> list[DenseSettings | ExpertSettings]:
    config = ClusterConfig(expert_actors=2, **keys)  # type: ignore[arg-type]
    return plan_actors(config, "token", fleet, config.num_expert_actors)


def test_on_plain_nodes_a_place_claims_a_little_cpu() -> None:
    assert [bundle(item, 1.0, CPU_NODE) for item in plan(CPU_NODE)] == [{"CPU": CPUS_PER_ACTOR}] * 3


def test_labelled_gpu_nodes_are_claimed_by_their_kind() -> None:
    dense, *experts = [bundle(item, 1.0, GPU_NODES) for item in plan(GPU_NODES)]
    assert dense == {"CPU": CPUS_PER_ACTOR, "GPU": 1.0, "phimoe_dense": 0.001}
    assert experts == [{"CPU": CPUS_PER_ACTOR, "GPU": 1.0, "phimoe_expert": 0.001}] * 2


def test_cuda_without_enough_gpus_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="has 0 GPUs and the actors need 3"):
        plan(CPU_NODE, device="cuda")


@pytest.mark.parametrize(
    ("fleet", "kind", "device"),
    [
        pytest.param(GPU_NODES, None, "cuda", id="whole-with-gpus"),
        pytest.param(GPU_NODES, "int8", "cuda", id="int8-with-gpus"),
        pytest.param(GPU_NODES, "fp8", "cuda", id="fp8-with-gpus"),
        pytest.param(GPU_NODES, "int4", "cpu", id="int4-with-gpus"),
        pytest.param(CPU_NODE, None, "cpu", id="whole-without"),
        pytest.param(CPU_NODE, "int8", "cpu", id="int8-without"),
        pytest.param(CPU_NODE, "int4", "cpu", id="int4-without"),
    ],
)
def test_auto_is_a_device_that_serves_the_quantization(fleet: Fleet, kind: str | None, device: str) -> None:
    planned = plan(fleet, expert_quantization=kind)
    assert {(item.device, item.expert_quantization) for item in planned} == {(device, kind)}


def test_auto_is_a_cpu_where_the_dense_part_is_quantized() -> None:
    planned = plan(GPU_NODES, dense_quantization="int8", expert_quantization="int8")
    assert {item.device for item in planned} == {"cpu"}
    assert [item.dense_quantization for item in planned if isinstance(item, DenseSettings)] == ["int8"]


def test_auto_without_the_gpus_that_a_quantization_needs_is_refused_with_both_numbers() -> None:
    complaint = (
        "expert_quantization is 'fp8', which needs device cuda, but the cluster has 3 GPUs and .* need 6"
    )
    with pytest.raises(ValueError, match=complaint):
        plan(GPU_NODES, expert_quantization="fp8", gpus_per_actor=2.0)


def test_several_dense_actors_are_planned_before_the_expert_actors() -> None:
    planned = plan(CPU_NODE, dense_actors=2, dense_threads=1)
    kinds = [(type(item).__name__, item.index) for item in planned]
    assert kinds == [
        ("DenseSettings", 0),
        ("DenseSettings", 1),
        ("ExpertSettings", 0),
        ("ExpertSettings", 1),
    ]


@given(
    num_cores=st.integers(1, 128),
    num_experts=st.integers(0, 16),
    num_nodes=st.integers(1, 8),
    num_dense=st.integers(1, 8),
)
def test_actors_of_a_kind_share_the_cores_of_their_node(
    num_cores: int, num_experts: int, num_nodes: int, num_dense: int
) -> None:
    threads = share_threads(num_cores, num_dense, num_experts, num_nodes)
    dense_cores = num_cores // 2 if num_experts else num_cores
    for count, num_threads, cores in (
        (num_dense, threads.dense, dense_cores),
        (num_experts, threads.expert, num_cores),
    ):
        per_node = -(-count // num_nodes)
        assert num_threads == 1 or num_threads * per_node <= cores
        assert num_threads == max(1, cores // max(1, per_node))


def test_an_actor_is_placed_away_from_its_kind_where_nodes_can_hold_it() -> None:
    dense, expert = {"CPU": 0.05, "phimoe_dense": 0.001}, {"CPU": 0.05, "phimoe_expert": 0.001}
    nodes = {
        "a": {"CPU": 2.0, "phimoe_dense": 1.0},
        "b": {"CPU": 2.0, "phimoe_dense": 1.0, "phimoe_expert": 1.0},
        "c": {"CPU": 2.0, "phimoe_expert": 1.0},
    }
    assert choose_node(dense, nodes, {"a": 1}, {"a": 1}) == "b"
    assert choose_node(expert, nodes, {}, {"a": 1, "b": 1}) == "c"
    assert choose_node(expert, nodes, {"c": 1}, {"a": 1, "b": 1, "c": 1}) == "b"
    assert choose_node({"GPU": 1.0}, nodes, {}, {}) is None
