"""Tests placements: they are complete, spread over nodes and balanced, and they move few experts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.supervisor.placement.placement import (
    Holder,
    Placement,
    gain,
    num_moves,
    place,
    slot_counts,
    spread_experts,
    stand_in,
)

EVERY_EXPERT = set(range(16))


def holders(num_actors: int, replicas: int = 1, redundant: int = 0, nodes: int = 1) -> list[Holder]:
    counts = slot_counts(num_actors, replicas, redundant)
    return [
        Holder(index=index, node=f"node-{index % nodes}", num_slots=count)
        for index, count in enumerate(counts)
    ]


def zipf(seed: int, num_layers: int = 4, noise: float = 0.0) -> list[list[float]]:
    generator = np.random.default_rng(seed)
    heat = generator.permutation(1.0 / np.arange(1, 17))
    rows: list[list[float]] = (
        heat * generator.uniform(1 - noise, 1 + noise, (num_layers, 16)) * 1000
    ).tolist()
    return rows


def copies(placement: Placement) -> list[int]:
    return [sum(expert in experts for experts in placement.slots.values()) for expert in range(16)]


def balance(loads: list[list[float]], placement: Placement) -> float:
    """Return the load of the mean actor over that of the most loaded actor, each summed over the layers.

    It is 1 if all actors have the same load in every layer.
    """
    num_copies = copies(placement)
    most = sum(
        max(
            sum(layer[expert] / num_copies[expert] for expert in experts)
            for experts in placement.slots.values()
        )
        for layer in loads
    )
    return sum(map(sum, loads)) / len(placement.slots) / most


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


@given(num_actors=st.integers(1, 16))
def test_without_loads_and_replicas_the_first_placement_is_contiguous(num_actors: int) -> None:
    placed = place(holders(num_actors), None, None)
    assert placed.version == 1
    assert tuple(placed.slots.values()) == spread_experts(num_actors)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Holder], list[list[float]] | None, int]:
    num_actors = draw(st.integers(1, 10))
    replicas = draw(st.integers(1, min(3, num_actors)))
    made = holders(num_actors, replicas, draw(st.integers(0, 2)))
    nodes = draw(st.lists(st.sampled_from("abc"), min_size=num_actors, max_size=num_actors))
    placed = [
        Holder(index=item.index, node=node, num_slots=item.num_slots)
        for item, node in zip(made, nodes, strict=True)
    ]
    loads = draw(st.none() | st.integers(0, 100).map(zipf))
    return placed, loads, replicas


@settings(max_examples=30)
@given(problems(), st.none() | st.integers(0, 2**32))
def test_slots_are_filled_with_different_experts_and_replicas_are_on_different_nodes(
    problem: tuple[list[Holder], list[list[float]] | None, int], seed: int | None
) -> None:
    actors, loads, replicas = problem
    present = None
    if seed is not None:
        generator = np.random.default_rng(seed)
        slots = {
            item.index: tuple(sorted(generator.choice(16, item.num_slots, replace=False).tolist()))
            for item in actors
        }
        present = Placement(version=7, slots=slots)
    placed = place(actors, loads, present, replicas)
    assert placed == place(list(reversed(actors)), loads, present, replicas)
    for item in actors:
        experts = placed.slots[item.index]
        assert list(experts) == sorted(set(experts)) and set(experts) <= EVERY_EXPERT
        assert len(experts) == item.num_slots
    assert min(copies(placed)) >= replicas
    if present is not None:
        assert placed == present or placed.version == 8
    # Two nodes can be asked for in every case only if both sides have a node with room for all experts.
    room = {
        node: sum(item.num_slots for item in actors if item.node == node)
        for node in {item.node for item in actors}
    }
    if sum(slots >= 16 for slots in room.values()) >= 2:
        node_of = {item.index: item.node for item in actors}
        for expert in range(16):
            on = [node_of[index] for index, experts in placed.slots.items() if expert in experts]
            assert len(set(on)) >= min(2, len(on))


@pytest.mark.parametrize(("num_actors", "least"), [(4, 0.99), (8, 0.96)])
def test_one_redundant_slot_per_actor_balances_zipf_loads(num_actors: int, least: float) -> None:
    actors = holders(num_actors, redundant=1)
    found = [balance(zipf(seed), place(actors, zipf(seed), None)) for seed in range(10)]
    assert min(found) >= least
    contiguous = place(holders(num_actors), None, None)
    assert all(balance(zipf(seed), contiguous) < 0.9 for seed in range(10))


def test_a_placement_that_fits_its_loads_is_left_alone() -> None:
    actors = holders(4, 2, 1)
    first = place(actors, zipf(1, noise=0.05), None, 2)
    assert place(actors, zipf(1, noise=0.05), first, 2) is first
    again = place(actors, zipf(1, noise=0.04), first, 2)
    assert num_moves(first.slots, again.slots) <= 2


@given(fewer=st.integers(1, 15), more=st.integers(1, 4))
def test_growing_fills_the_new_actors_and_moves_nothing_else(fewer: int, more: int) -> None:
    grown = min(16, fewer + more)
    before = place(holders(fewer), None, None)
    after = place(holders(grown), None, before)
    added = [experts for index, experts in after.slots.items() if index >= fewer]
    assert num_moves(before.slots, after.slots) == sum(len(experts) for experts in added)
    sizes = [len(experts) for experts in after.slots.values()]
    assert max(sizes) - min(sizes) <= 1 and copies(after) == [1] * 16


@given(more=st.integers(2, 16), fewer=st.integers(1, 15))
def test_shrinking_moves_what_the_removed_actors_had(more: int, fewer: int) -> None:
    fewer = min(fewer, more - 1)
    before = place(holders(more), None, None)
    after = place(holders(fewer), None, before)
    gone = sum(len(experts) for index, experts in before.slots.items() if index >= fewer)
    assert num_moves(before.slots, after.slots) == gone
    assert copies(after) == [1] * 16


def test_a_new_heat_moves_few_experts_and_gains() -> None:
    actors = holders(4, 1, 1)
    before = place(actors, zipf(1), None)
    after = place(actors, zipf(2), before)
    fresh = place(actors, zipf(2), None)
    assert after.version == 2
    assert gain(zipf(2), before, after) > 0.1
    assert balance(zipf(2), after) > 0.95
    assert num_moves(before.slots, after.slots) <= num_moves(before.slots, fresh.slots)


def test_redundant_slots_hold_what_is_hot() -> None:
    loads = [[100.0 if expert == 5 else 1.0 for expert in range(16)]]
    assert copies(place(holders(4, 1, 1), loads, None))[5] == 4


def test_replicas_move_to_different_nodes_when_a_node_is_shared() -> None:
    crowded = [Holder(index=index, node="a", num_slots=8) for index in range(4)]
    before = place(crowded, None, None, 2)
    spread = [
        Holder(index=item.index, node="ab"[item.index % 2], num_slots=item.num_slots) for item in crowded
    ]
    after = place(spread, None, before, 2)
    for expert in range(16):
        assert {"ab"[index % 2] for index, experts in after.slots.items() if expert in experts} == {"a", "b"}


def test_too_few_slots_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="the 1 expert actors have 8 slots, expected at least 16"):
        place([Holder(index=0, node="", num_slots=8)], None, None)


def test_the_gain_of_the_same_placement_is_nothing() -> None:
    placed = place(holders(4), None, None)
    assert gain(zipf(3), placed, placed) == 0


@st.composite
def losses(draw: st.DrawFn) -> tuple[Placement, dict[int, str], list[list[float]] | None, int]:
    """Return a placement, the nodes of the actors that are left, loads and the number of replicas."""
    made, loads, replicas = draw(problems())
    left = draw(st.sets(st.sampled_from([item.index for item in made]), min_size=1))
    return (
        place(made, loads, None, replicas),
        {item.index: item.node for item in made if item.index in left},
        loads,
        replicas,
    )


@settings(max_examples=40)
@given(loss=losses())
def test_those_who_are_left_take_over_what_is_missing(
    loss: tuple[Placement, dict[int, str], list[list[float]] | None, int],
) -> None:
    present, nodes, loads, replicas = loss
    placed = stand_in(nodes, loads, present, replicas)
    assert placed.slots.keys() == present.slots.keys()
    assert {index for index, experts in placed.slots.items() if experts} == nodes.keys()
    wanted = min(replicas, len(nodes))
    assert min(copies(placed)) >= wanted
    share = -(-16 * wanted // len(nodes))
    for index in nodes:
        assert list(placed.slots[index]) == sorted(set(placed.slots[index]))
        assert len(placed.slots[index]) <= max(share, len(present.slots[index]))
    room: Counter[str] = Counter()
    for index, node in nodes.items():
        room[node] += len(placed.slots[index])
    if wanted > 1 and len(room) > 1 and min(room.values()) >= 16:
        for expert in range(16):
            assert len({nodes[index] for index in nodes if expert in placed.slots[index]}) > 1
    if placed.slots != present.slots:
        assert placed.version == present.version + 1
    else:
        assert placed == present


@pytest.mark.parametrize("num_actors", [2, 3, 4, 8])
def test_taking_over_moves_what_is_missing_and_nothing_else(num_actors: int) -> None:
    present = place(holders(num_actors), None, None)
    nodes = {index: f"node-{index}" for index in range(1, num_actors)}
    placed = stand_in(nodes, None, present, 1)
    assert num_moves(present.slots, placed.slots) == len(present.slots[0])
    assert all(set(present.slots[index]) <= set(placed.slots[index]) for index in nodes)
    assert copies(placed) == [1] * 16 and placed.slots[0] == ()
    assert max(len(placed.slots[index]) for index in nodes) <= -(-16 // (num_actors - 1))


def test_nobody_left_cannot_take_over() -> None:
    with pytest.raises(ValueError, match="no expert actor is left"):
        stand_in({}, None, place(holders(2), None, None), 1)
