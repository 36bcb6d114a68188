"""Decides which expert actor holds which experts: loads and actors in, versioned placement out. Pure.

    slots of the actors    0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15      one replica of each expert
                           0 1 2 3 4 | 3 4 5 6 7 | ...                      redundant slots: the most loaded

A slot holds one expert in all layers. The rows of an expert are split evenly over its replicas, so the load
of an actor in a layer is the sum of load / replicas over its slots. A layer takes as long as its most loaded
actor. The cost of a placement is the load of the most loaded actor, summed over the layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from actors.checkpoint.config import NUM_EXPERTS
from cluster.supervisor.placement.local_search import Board, Matrix, as_matrix, cost, improve, num_violations

Loads: TypeAlias = Sequence[Sequence[float]]
"""Rows routed to each expert, [layer][expert]."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """The slots of all expert actors, in one version."""

    version: int
    slots: dict[int, tuple[int, ...]]
    """Maps the index of an expert actor to its experts, ascending. An actor whose experts others hold while
    it stays away has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """An expert actor that experts can be placed on."""

    index: int
    node: str
    """Node on which the actor runs. Replicas are kept on different nodes if there are several."""
    num_slots: int


def spread_experts(num_actors: int) -> tuple[tuple[int, ...], ...]:
    """Return the experts of each expert actor: contiguous, each expert once, and as even as possible.

        16 experts on 3 actors    0 1 2 3 4 5 | 6 7 8 9 10 | 11 12 13 14 15

    Raises ValueError for more actors than experts, since an actor would have no work.
    """
    if not 0 <= num_actors <= NUM_EXPERTS:
        raise ValueError(f"num_actors is {num_actors}, expected 0 to {NUM_EXPERTS}")
    if num_actors == 0:
        return ()
    return _cut(_even(NUM_EXPERTS, num_actors))


def slot_counts(num_actors: int, num_replicas: int, num_redundant: int) -> tuple[int, ...]:
    """Return the number of slots of each actor: an even share of all replicas, plus `num_redundant`.

    An actor never has more slots than there are experts.
    """
    shares = _even(NUM_EXPERTS * num_replicas, num_actors)
    return tuple(min(NUM_EXPERTS, share + num_redundant) for share in shares)


def place(
    holders: Sequence[Holder], loads: Loads | None, present: Placement | None, num_replicas: int = 1
) -> Placement:
    """Return a placement on these actors that balances the load and moves few experts.

    If nothing changes, return `present` itself. Every expert is placed, with `num_replicas` replicas on
    different actors if there are enough slots. Slots that are left hold further replicas of the experts with
    the most load per replica. Replicas are on different nodes if there are several. Without loads all experts
    count the same. Equal arguments give equal placements.

    Raises ValueError if there are fewer slots than experts.
    """
    board = _board(holders, num_replicas)
    matrix = as_matrix(loads, NUM_EXPERTS)
    held = {} if present is None else present.slots
    if not any(held.get(holder.index) for holder in holders):
        return Placement(version=_next(present), slots=_fresh(board, matrix, loads is None))
    slots = board.slots(_from_present(board, board.keep(held), matrix))
    if present is not None and slots == present.slots:
        return present
    return Placement(version=_next(present), slots=slots)


def stand_in(
    nodes: Mapping[int, str], loads: Loads | None, present: Placement, num_replicas: int
) -> Placement:
    """Return a placement in which some actors of the present placement take over the experts of all others.

    `nodes` maps the index of each actor that takes over to its node. These actors give up an expert only to
    make room for an expert with too few replicas, or to keep replicas on different nodes. None of them gets
    more slots than it has, or than its even share of `num_replicas` of every expert. The other actors stay in
    the placement without slots, so that they can get experts again.

    Raises ValueError if `nodes` is empty.
    """
    if not nodes:
        raise ValueError("no expert actor is left, expected at least 1")
    num_replicas = min(num_replicas, len(nodes))
    held = {index: present.slots.get(index, ()) for index in nodes}
    largest_first = sorted(nodes, key=lambda index: (-len(held[index]), index))
    shares = dict(zip(largest_first, _even(NUM_EXPERTS * num_replicas, len(nodes)), strict=True))
    holders = [
        Holder(index=index, node=node, num_slots=max(shares[index], len(held[index])))
        for index, node in nodes.items()
    ]
    board, matrix = _board(holders, num_replicas), as_matrix(loads, NUM_EXPERTS)
    rows = improve(board, board.fill(board.keep(held), matrix), matrix, least_gain=_ONLY_PARTING)
    return among(
        Placement(version=_next(present), slots=board.slots(rows)), present, present.slots.keys() - nodes
    )


def among(placement: Placement, present: Placement | None, absent: Iterable[int]) -> Placement:
    """Return the placement with the actors in `absent` added without slots, or `present` if that is equal."""
    slots = {**placement.slots, **dict.fromkeys(absent, ())}
    if present is not None and slots == present.slots:
        return present
    return Placement(version=_next(present), slots=dict(sorted(slots.items())))


def gain(loads: Loads | None, present: Placement, other: Placement) -> float:
    """Return the part of the present cost that the other placement saves; negative if it costs more."""
    matrix = as_matrix(loads, NUM_EXPERTS)
    before = cost(matrix, _rows(present))
    return 1.0 - cost(matrix, _rows(other)) / before if before else 0.0


def num_moves(before: Mapping[int, Sequence[int]], after: Mapping[int, Sequence[int]]) -> int:
    """Count the experts to load, each by one actor, to get from one set of slots to another."""
    return sum(len(set(experts) - set(before.get(index, ()))) for index, experts in after.items())


_LEAST_GAIN_PER_MOVE = 0.005
"""The part of the cost that the move of one expert must save."""
_MIN_FRESH_GAIN = 0.03
"""The part of the cost that a placement made without regard to the present placement must save."""


_ONLY_PARTING = 1.0
"""A gain that no better balance reaches, so that only steps which take a replica to another node are made."""


def _board(holders: Sequence[Holder], num_replicas: int) -> Board:
    num_slots = sum(min(NUM_EXPERTS, holder.num_slots) for holder in holders)
    if num_slots < NUM_EXPERTS:
        raise ValueError(
            f"the {len(holders)} expert actors have {num_slots} slots, expected at least {NUM_EXPERTS}"
        )
    ordered = sorted(holders, key=lambda holder: holder.index)
    return Board(
        indices=tuple(holder.index for holder in ordered),
        nodes=tuple(holder.node for holder in ordered),
        capacities=tuple(min(NUM_EXPERTS, holder.num_slots) for holder in ordered),
        num_experts=NUM_EXPERTS,
        num_replicas=min(num_replicas, len(ordered)),
    )


def _from_present(board: Board, present: Matrix, matrix: Matrix) -> Matrix:
    """Return an occupation near the present one, or a fresh one if that is worth the moves.

    A fresh occupation is worth the moves if it spreads replicas over more nodes, or balances the load much
    better.
    """
    near = improve(board, board.fill(present, matrix), matrix, least_gain=_LEAST_GAIN_PER_MOVE)
    fresh = improve(board, board.fill(board.keep({}), matrix), matrix, least_gain=0.0)
    more = num_violations(board, fresh) - num_violations(board, near)
    is_better = cost(matrix, fresh) < cost(matrix, near) * (1 - _MIN_FRESH_GAIN)
    return board.match(fresh, present) if more < 0 or (more == 0 and is_better) else near


def _fresh(board: Board, matrix: Matrix, is_even: bool) -> dict[int, tuple[int, ...]]:
    if is_even and sum(board.capacities) == NUM_EXPERTS:
        return dict(zip(board.indices, _cut(list(board.capacities)), strict=True))
    return board.slots(improve(board, board.fill(board.keep({}), matrix), matrix, least_gain=0.0))


def _rows(placement: Placement) -> Matrix:
    board = Board(
        indices=tuple(sorted(placement.slots)),
        nodes=("",) * len(placement.slots),
        capacities=(NUM_EXPERTS,) * len(placement.slots),
        num_experts=NUM_EXPERTS,
        num_replicas=1,
    )
    return board.keep(placement.slots)


def _next(present: Placement | None) -> int:
    return 1 if present is None else present.version + 1


def _even(total: int, num_parts: int) -> list[int]:
    smaller, rest = divmod(total, num_parts)
    return [smaller + (index < rest) for index in range(num_parts)]


def _cut(sizes: list[int]) -> tuple[tuple[int, ...], ...]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))
