"""What each actor's place claims of its node."""

from __future__ import annotations

import pytest

from actors.settings import DenseSettings, ExpertSettings
from cluster.config import ClusterConfig
from cluster.hosting import CPUS_PER_ACTOR, Fleet, bundle, plan_actors

GPU_NODES = Fleet(
    num_nodes=3,
    cores_per_node=8,
    num_gpus=3,
    labels=frozenset({"CPU", "GPU", "phimoe_dense", "phimoe_expert"}),
)
CPU_NODE = Fleet(num_nodes=1, cores_per_node=2, num_gpus=0, labels=frozenset({"CPU"}))


def plan(fleet: Fleet, **keys: object) -> list[DenseSettings | ExpertSettings]:
    return plan_actors(ClusterConfig(expert_actors=2, **keys), "token", fleet)  # type: ignore[arg-type]


def test_on_plain_nodes_a_place_claims_a_little_cpu() -> None:
    assert [bundle(item, 1.0, CPU_NODE) for item in plan(CPU_NODE)] == [{"CPU": CPUS_PER_ACTOR}] * 3


def test_labelled_gpu_nodes_are_claimed_by_their_kind() -> None:
    dense, *experts = [bundle(item, 1.0, GPU_NODES) for item in plan(GPU_NODES)]
    assert dense == {"CPU": CPUS_PER_ACTOR, "GPU": 1.0, "phimoe_dense": 0.001}
    assert experts == [{"CPU": CPUS_PER_ACTOR, "GPU": 1.0, "phimoe_expert": 0.001}] * 2


def test_cuda_without_enough_gpus_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="has 0 GPUs and the actors need 3"):
        plan(CPU_NODE, device="cuda")
