"""Compares the expected number of experts of a batch with an enumeration of all cases."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.checkpoint.dummy.presets import preset_config
from cluster.commands.plan.routing import busiest_actor, distinct_experts, expert_share
from cluster.commands.plan.shape import model_shape

SHAPE = model_shape(preset_config("phi-3.5-moe"))


@pytest.mark.parametrize(("num_tokens", "expected"), [(1, 2.0), (2, 3.75), (4, 6.6211), (32, 15.7769)])
def test_a_batch_touches_as_many_experts_as_two_of_sixteen_chosen_evenly(
    num_tokens: int, expected: float
) -> None:
    assert distinct_experts(num_tokens, 16, 2) == pytest.approx(expected, abs=1e-3)


def test_the_expectation_is_that_of_draws() -> None:
    draw = random.Random(1)
    counts = [len({e for _ in range(5) for e in draw.sample(range(16), 2)}) for _ in range(20_000)]
    assert distinct_experts(5, 16, 2) == pytest.approx(sum(counts) / len(counts), rel=0.01)


@pytest.mark.parametrize(("num_actors", "sizes"), [(1, [7]), (2, [4, 3]), (3, [3, 2, 2]), (7, [1] * 7)])
@pytest.mark.parametrize("num_touched", range(8))
def test_the_busiest_actor_is_that_of_all_selections(
    num_actors: int, sizes: list[int], num_touched: int
) -> None:
    owners = [actor for actor, size in enumerate(sizes) for _ in range(size)]
    selections = list(itertools.combinations(owners, num_touched))
    busiest = [
        max((selection.count(actor) for actor in range(num_actors)), default=0) for selection in selections
    ]
    assert busiest_actor(num_touched, 7, num_actors) == pytest.approx(sum(busiest) / len(busiest))


@given(st.integers(1, 5000), st.integers(1, 16), st.integers(1, 4))
def test_the_busiest_actor_has_its_share_and_no_more_than_all(
    tokens: int, actors: int, replicas: int
) -> None:
    read, rows = expert_share(SHAPE, tokens, actors, min(replicas, actors))
    assert rows >= 2 * tokens / actors * (1 - 1e-9)
    assert rows <= 2 * tokens * (1 + 1e-9)
    assert 1 - 1e-9 <= read <= 16 * min(replicas, actors) + 1e-9


def test_a_second_copy_evens_out_a_small_batch_and_is_read_too_by_a_large_one() -> None:
    assert expert_share(SHAPE, 4, 4, 2)[0] < expert_share(SHAPE, 4, 4, 1)[0]
    assert expert_share(SHAPE, 4096, 4, 2)[0] == pytest.approx(8)
    assert expert_share(SHAPE, 4096, 4, 1)[0] == pytest.approx(4)
