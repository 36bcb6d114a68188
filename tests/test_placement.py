"""Experts on actors, threads on cores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import share_threads, spread_experts


@given(num_actors=st.integers(1, 16))
def test_every_expert_is_placed_once_and_sizes_differ_by_at_most_one(num_actors: int) -> None:
    placed = spread_experts(num_actors)
    assert [expert for experts in placed for expert in experts] == list(range(16))
    sizes = [len(experts) for experts in placed]
    assert len(sizes) == num_actors
    assert max(sizes) - min(sizes) <= 1


def test_no_actors_hold_nothing() -> None:
    assert spread_experts(0) == ()


@pytest.mark.parametrize("num_actors", [-1, 17])
def test_an_impossible_number_of_actors_is_refused(num_actors: int) -> None:
    with pytest.raises(ValueError, match=f"num_actors is {num_actors}"):
        spread_experts(num_actors)


@given(num_cores=st.integers(1, 128), num_experts=st.integers(0, 16), num_nodes=st.integers(1, 8))
def test_expert_actors_of_a_node_share_its_cores(num_cores: int, num_experts: int, num_nodes: int) -> None:
    threads = share_threads(num_cores, num_experts, num_nodes)
    per_node = -(-num_experts // num_nodes)
    assert threads.dense == num_cores
    assert threads.expert >= 1
    assert threads.expert == 1 or threads.expert * per_node <= num_cores
