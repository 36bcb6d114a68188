from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.exchange.row_assignment import (
    MIN_PART_ROWS,
    NOBODY,
    Portion,
    assign_rows,
    owner_table,
    portion_out,
    split_rows,
)

NUM_EXPERTS = 16


@st.composite
def loads(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Rows of some experts, and the holders of all experts."""
    num_holders = draw(st.integers(1, 5))
    rows = st.one_of(st.integers(1, 8), st.integers(1, 1000))
    counts = draw(st.dictionaries(st.integers(0, NUM_EXPERTS - 1), rows))
    places = st.lists(st.integers(0, num_holders - 1), max_size=num_holders, unique=True)
    holders = draw(st.lists(places, min_size=NUM_EXPERTS, max_size=NUM_EXPERTS))
    return list(counts.items()), holders


@given(loads())
def test_portions_are_all_rows_at_holders_of_their_experts(
    case: tuple[list[tuple[int, int]], list[list[int]]],
) -> None:
    counts, holders = case
    portions = portion_out(counts, holders)
    for expert, count in counts:
        own = [portion for portion in portions if portion.expert == expert]
        assert sum(portion.num_rows for portion in own) == count
        assert len({portion.holder for portion in own}) == len(own)
        assert all(portion.num_rows > 0 for portion in own)
        if holders[expert]:
            assert {portion.holder for portion in own} <= set(holders[expert])
        else:
            assert own == [Portion(expert, NOBODY, count)]
    assert {portion.expert for portion in portions} == {expert for expert, _ in counts}


@given(loads())
def test_an_expert_with_few_rows_stays_whole_and_parts_are_worth_reading_weights_for(
    case: tuple[list[tuple[int, int]], list[list[int]]],
) -> None:
    counts, holders = case
    portions = portion_out(counts, holders)
    for expert, count in counts:
        sizes = [portion.num_rows for portion in portions if portion.expert == expert]
        if count < 2 * MIN_PART_ROWS:
            assert sizes == [count]
        else:
            assert min(sizes) >= MIN_PART_ROWS


@given(loads())
def test_no_holder_could_hand_a_whole_part_to_an_idler_one(
    case: tuple[list[tuple[int, int]], list[list[int]]],
) -> None:
    """The work is as even as a greedy choice makes it: holders differ by one part at most."""
    counts, _ = case
    num_holders = 4
    holders = [list(range(num_holders))] * NUM_EXPERTS
    work = [0] * num_holders
    portions = portion_out(counts, holders)
    for portion in portions:
        work[portion.holder] += MIN_PART_ROWS + portion.num_rows
    largest = max([min(count, 2 * MIN_PART_ROWS) for _, count in counts], default=0)
    assert max(work) - min(work) <= largest + MIN_PART_ROWS


@given(loads(), st.randoms(use_true_random=False))
def test_every_route_goes_where_its_portion_says(
    case: tuple[list[tuple[int, int]], list[list[int]]], random: object
) -> None:
    counts, holders = case
    flat = np.array([expert for expert, count in counts for _ in range(count)], dtype=np.int64)
    random.shuffle(flat)  # type: ignore[attr-defined]
    ids = flat[: len(flat) // 2 * 2].reshape(-1, 2)
    present = np.bincount(ids.reshape(-1), minlength=NUM_EXPERTS).tolist()
    routed = [(expert, count) for expert, count in enumerate(present) if count]
    portions = portion_out(routed, holders)
    assigned = assign_rows(ids, portions, NUM_EXPERTS)
    for portion in portions:
        if portion.holder != NOBODY:
            assert ((ids == portion.expert) & (assigned == portion.holder)).sum() == portion.num_rows
    shares = split_rows(ids, assigned)
    seen = [target for share in shares for target in share.targets.tolist()]
    assert sorted(seen) == np.flatnonzero(assigned != NOBODY).tolist()
    for share in shares:
        is_here = share.expert_ids >= 0
        assert is_here.any(axis=1).all()
        assert share.expert_ids[is_here].tolist() == ids.reshape(-1)[share.targets].tolist()
        assert (share.tokens[np.nonzero(is_here)[0]] == share.targets // 2).all()


def test_two_dense_actors_with_the_same_rows_ask_the_same_holders() -> None:
    counts, holders = [(3, 1), (8, 1)], [[0, 1]] * NUM_EXPERTS
    assert portion_out(counts, holders) == portion_out(list(reversed(counts)), holders)


def test_two_experts_of_one_token_are_computed_side_by_side() -> None:
    for first, second in ((0, 1), (0, 2), (5, 9)):
        portions = portion_out([(first, 1), (second, 1)], [[0, 1]] * NUM_EXPERTS)
        assert {portion.holder for portion in portions} == {0, 1}


def test_who_has_no_choice_is_considered_first() -> None:
    holders = [[0, 1]] * NUM_EXPERTS
    holders[7] = [0]
    portions = portion_out([(0, 2), (7, 1)], holders)
    assert {portion.expert: portion.holder for portion in portions} == {7: 0, 0: 1}


def test_an_id_of_minus_one_goes_nowhere() -> None:
    ids = np.array([[0, -1], [-1, -1]])
    assigned = assign_rows(ids, [Portion(0, 2, 1)], NUM_EXPERTS)
    assert assigned.tolist() == [[2, NOBODY], [NOBODY, NOBODY]]
    (share,) = split_rows(ids, assigned)
    assert (share.holder, share.tokens.tolist(), share.targets.tolist()) == (2, [0], [0])


def test_no_rows_make_no_shares() -> None:
    nothing = np.empty((0, 2), np.int64)
    assert split_rows(nothing, assign_rows(nothing, [], NUM_EXPERTS)) == []


def test_of_two_actors_with_an_expert_the_first_is_asked() -> None:
    assert owner_table([(0, 1), (1, 2)], 3).tolist() == [0, 0, 1]


def test_an_expert_that_nobody_holds_is_an_error() -> None:
    with pytest.raises(ValueError, match="expert 4 is held by no expert actor"):
        owner_table([range(4), range(5, 16)], 16)
