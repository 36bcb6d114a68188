"""Tests the choice of a dense actor: the least busy one, and round robin among equals."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.requests.load_balancer import Candidate, choose, cost


def candidate(index: int, **load: Any) -> Candidate:
    idle = {"running": 0, "waiting": 0, "unreported": 0, "free_blocks": 100, "total_blocks": 100}
    return Candidate(index=index, **(idle | load))


@pytest.mark.parametrize(
    "busier",
    [
        pytest.param({"running": 1}, id="running"),
        pytest.param({"waiting": 1}, id="waiting"),
        pytest.param({"unreported": 1}, id="submitted-and-not-yet-told"),
        pytest.param({"free_blocks": 40}, id="fewer-free-blocks"),
    ],
)
def test_the_less_busy_one_is_chosen(busier: dict[str, int]) -> None:
    for last in (-1, 0, 1):
        assert choose([candidate(0, **busier), candidate(1)], last) == 1
        assert choose([candidate(0), candidate(1, **busier)], last) == 0


def test_one_that_waits_counts_more_than_one_that_runs() -> None:
    assert choose([candidate(0, running=4, waiting=2), candidate(1, running=7)], -1) == 1


@pytest.mark.parametrize(
    ("held", "running", "chosen"),
    [
        pytest.param(1000, 0, 0, id="equals"),
        pytest.param(1000, 6, 0, id="somewhat-busier"),
        pytest.param(1000, 8, 1, id="clearly-busier"),
        pytest.param(1_000_000, 9, 1, id="clearly-busier-whatever-it-holds"),
        pytest.param(127, 1, 1, id="a-few-tokens-decide-nothing"),
    ],
)
def test_the_one_that_holds_the_prefix_is_chosen_unless_it_is_clearly_busier(
    held: int, running: int, chosen: int
) -> None:
    for last in (-1, 0, 1):
        assert choose([candidate(0, running=running, held_tokens=held), candidate(1)], last) == chosen


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True), st.integers(1, 40))
def test_equals_are_chosen_in_turn(indices: list[int], rounds: int) -> None:
    last, chosen = -1, Counter[int]()
    for _ in range(rounds * len(indices)):
        last = choose([candidate(index) for index in indices], last)
        chosen[last] += 1
    assert chosen == dict.fromkeys(indices, rounds)


@given(
    st.lists(
        st.builds(
            Candidate,
            index=st.integers(0, 100),
            running=st.integers(0, 99),
            waiting=st.integers(0, 99),
            unreported=st.integers(0, 99),
            free_blocks=st.integers(0, 1000),
            total_blocks=st.just(1000),
            held_tokens=st.integers(0, 5000),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda c: c.index,
    ),
    st.integers(-1, 100),
)
def test_nobody_is_cheaper_than_the_chosen_one(candidates: list[Candidate], last: int) -> None:
    chosen = choose(candidates, last)
    assert cost(next(c for c in candidates if c.index == chosen)) == min(cost(c) for c in candidates)
