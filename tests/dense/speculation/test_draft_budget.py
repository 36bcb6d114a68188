"""How many drafts join a step: only measurements decide."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dense.speculation.draft_budget import StepCost, draft_counts


def cost_of(base: float, per_row: float, rows: tuple[int, ...] = (1, 2, 4, 8)) -> StepCost:
    """The cost that is learnt from some steps that take base + per_row * rows seconds."""
    cost = StepCost()
    for _ in range(12):
        for num_rows in rows:
            cost.note(num_rows, base + per_row * num_rows)
    return cost


STEPS = st.tuples(st.floats(0, 1), st.floats(0, 0.1)).filter(lambda line: sum(line) > 1e-3)


@settings(max_examples=200)
@given(
    line=STEPS,
    sequences=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9)), min_size=1, max_size=40),
    budget=st.integers(0, 60),
)
def test_counts_stay_within_their_limits_and_better_chances_get_no_fewer(
    line: tuple[float, float], sequences: list[tuple[float, int]], budget: int
) -> None:
    acceptance, limits = [a for a, _ in sequences], [limit for _, limit in sequences]
    counts = draft_counts(acceptance, limits, budget, cost_of(*line))
    assert all(0 <= count <= limit for count, limit in zip(counts, limits, strict=True))
    assert sum(counts) <= budget
    if sum(counts) < budget:
        for a, limit, count in zip(acceptance, limits, counts, strict=True):
            assert not any(
                a > other and count < min(limit, number)
                for other, number in zip(acceptance, counts, strict=True)
            )


@settings(max_examples=200)
@given(line=STEPS, acceptance=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_step_with_drafts_is_never_expected_to_be_slower_for_all_together(
    line: tuple[float, float], acceptance: list[float]
) -> None:
    """The speed of all together is the product of their speeds: tokens of each sequence over the time of the
    step, against one token each without drafts."""
    cost = cost_of(*line)
    number = len(acceptance)
    counts = draft_counts(acceptance, [8] * number, 1000, cost)
    gain = 1.0
    for a, count in zip(acceptance, counts, strict=True):
        gain *= sum(a**index for index in range(count + 1))
    assert gain >= (cost.seconds(number + sum(counts)) / cost.seconds(number)) ** number * (1 - 1e-9)


@pytest.mark.parametrize(
    ("base", "per_row", "acceptance", "counts"),
    [
        pytest.param(1.0, 0.0, [0.9], [8], id="rows are free"),
        pytest.param(1.0, 0.0, [0.0], [0], id="but nothing is ever right"),
        pytest.param(0.7, 0.3, [1.0], [8], id="all is right"),
        pytest.param(0.7, 0.3, [0.3], [0], id="a row costs more than it brings"),
        pytest.param(0.7, 0.3, [0.7], [2], id="half and half"),
        pytest.param(0.0, 0.1, [1.0] * 32, [0] * 32, id="a full batch, bound by its rows"),
        pytest.param(0.7, 0.3, [1.0, 0.0, 0.0, 0.0], [1, 0, 0, 0], id="neighbours are spared"),
    ],
)
def test_counts(base: float, per_row: float, acceptance: list[float], counts: list[int]) -> None:
    assert draft_counts(acceptance, [8] * len(acceptance), 1000, cost_of(base, per_row)) == counts


def test_before_any_step_was_measured_there_are_no_drafts() -> None:
    assert draft_counts([1.0], [8], 100, StepCost()) == [0]


def test_a_slow_first_step_makes_no_row_dear_for_ever() -> None:
    cost = StepCost()
    for seconds in (0.2, *[0.01] * 100):
        cost.note(1, seconds)
    assert draft_counts([0.9], [8], 100, cost)[0] >= 1


def test_a_price_at_which_no_draft_is_tried_is_forgotten_in_the_end() -> None:
    cost = cost_of(0.0, 0.01)
    assert draft_counts([0.95], [8], 100, cost) == [0]
    for _ in range(400):
        cost.note(1, 0.01)
    assert draft_counts([0.95], [8], 100, cost)[0] >= 1


def test_the_line_follows_a_machine_that_becomes_slower() -> None:
    cost, draw = cost_of(0.02, 0.005), random.Random(1)
    for _ in range(150):
        rows = draw.randint(1, 9)
        cost.note(rows, 2 * (0.02 + 0.005 * rows) * draw.uniform(0.95, 1.05))
    assert cost.per_row == pytest.approx(0.01, rel=0.1)
    assert cost.seconds(5) == pytest.approx(0.09, rel=0.05)


def test_steps_of_equally_many_rows_leave_the_slope_as_it_was() -> None:
    cost, draw = cost_of(0.02, 0.005), random.Random(1)
    for _ in range(300):
        cost.note(9, 0.065 * draw.uniform(0.95, 1.05))
    assert cost.per_row == pytest.approx(0.005, rel=0.2)


def test_a_step_that_waited_for_an_actor_changes_little() -> None:
    cost = cost_of(0.02, 0.005)
    before = cost.seconds(1)
    cost.note(1, 30.0)
    assert cost.seconds(1) < 1.2 * before
