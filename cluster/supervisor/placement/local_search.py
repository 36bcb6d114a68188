"""Puts experts into slots: fills all slots first, then improves the result step by step. Pure.

An occupation is a matrix [A, E] of 0 and 1; a 1 means that actor a has a slot for expert e.

Legend: A actors, E experts, L layers, N candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Matrix: TypeAlias = npt.NDArray[np.float64]

_MAX_STEPS = 200
_SAME_NODE = 1e6
"""Cost of a replica that shares a node with another replica, in units of the present cost. It is larger than
anything that a better balance can save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """The actors of a placement, sorted by index, and what the placement must fulfil."""

    indices: tuple[int, ...]
    nodes: tuple[str, ...]
    capacities: tuple[int, ...]
    """Number of slots of each actor, at most E."""
    num_experts: int
    num_replicas: int
    """Number of replicas that every expert must have, at most A."""

    def keep(self, slots: Mapping[int, Sequence[int]]) -> Matrix:
        """Return `slots` as an occupation [A, E].

        An actor with too few slots keeps experts with few replicas.
        """
        rows = np.zeros((len(self.indices), self.num_experts))
        for row, index in enumerate(self.indices):
            rows[row, list(slots.get(index, ()))] = 1
        for row, capacity in enumerate(self.capacities):
            while rows[row].sum() > capacity:
                held = np.flatnonzero(rows[row])
                rows[row, max(held, key=lambda expert: (rows[:, expert].sum(), expert))] = 0
        return rows

    def slots(self, rows: Matrix) -> dict[int, tuple[int, ...]]:
        """Return an occupation as a mapping from the actor's index to its experts, ascending."""
        return {
            index: tuple(int(expert) for expert in np.flatnonzero(row))
            for index, row in zip(self.indices, rows, strict=True)
        }

    def match(self, rows: Matrix, present: Matrix) -> Matrix:
        """Return the occupation [A, E] with rows exchanged between actors of the same node and capacity.

        An actor gets the row with the most experts that it already holds in `present`.
        """
        matched = rows.copy()
        for kind in sorted(set(zip(self.nodes, self.capacities, strict=True))):
            alike = [
                row
                for row, other in enumerate(zip(self.nodes, self.capacities, strict=True))
                if other == kind
            ]
            left = list(alike)
            for row in alike:
                best = max(left, key=lambda other: ((rows[other] * present[row]).sum(), -other))
                matched[row] = rows[best]
                left.remove(best)
        return matched

    def fill(self, rows: Matrix, matrix: Matrix) -> Matrix:
        """Return the occupation [A, E] with all slots filled.

        First every expert gets one replica, then a second and so on up to `num_replicas`. Slots that are left
        get further replicas of the experts with the most load per replica.
        """
        rows, total = rows.copy(), matrix.sum(axis=0)
        for wanted in range(1, self.num_replicas + 1):
            for expert in sorted(range(self.num_experts), key=lambda expert: (-total[expert], expert)):
                if rows[:, expert].sum() < wanted:
                    self._add(rows, expert)
        while (rows.sum(axis=1) < self.capacities).any():
            heat = total / rows.sum(axis=0)
            for expert in sorted(range(self.num_experts), key=lambda expert: (-heat[expert], expert)):
                row = self._free_actor(rows, expert)
                if row is not None:
                    rows[row, expert] = 1
                    break
            else:
                break
        return rows

    def node_matrix(self) -> Matrix:
        """Return a matrix [number of nodes, A] with 1 where the actor is on the node."""
        names = sorted(set(self.nodes))
        return np.array([[float(node == name) for node in self.nodes] for name in names])

    def _free_actor(self, rows: Matrix, expert: int) -> int | None:
        """Return the actor that gets a replica, or None if none has a free slot and lacks the expert.

        Nodes without a replica of the expert come first, then the node with the most free slots, then the
        actor with the most free slots.
        """
        free = np.array(self.capacities) - rows.sum(axis=1)
        candidates = [row for row in range(len(self.indices)) if free[row] > 0 and not rows[row, expert]]
        if not candidates:
            return None
        taken = {self.nodes[row] for row in np.flatnonzero(rows[:, expert])}
        free_of = {
            node: sum(free[row] for row, other in enumerate(self.nodes) if other == node)
            for node in self.nodes
        }
        return min(
            candidates,
            key=lambda row: (self.nodes[row] in taken, -free_of[self.nodes[row]], -free[row], row),
        )

    def _add(self, rows: Matrix, expert: int) -> None:
        """Add a replica of the expert, if possible.

        Without a free slot it takes the slot of an expert that moves to another actor or that has replicas to
        spare.
        """
        place = self._free_actor(rows, expert)
        if place is not None:
            rows[place, expert] = 1
            return
        copies, free = rows.sum(axis=0), np.array(self.capacities) - rows.sum(axis=1)
        for row in np.flatnonzero(rows[:, expert] == 0):
            for other in np.flatnonzero(rows[row]):
                if copies[other] > max(self.num_replicas, copies[expert] + 1):
                    rows[row, other], rows[row, expert] = 0, 1
                    return
                for third in np.flatnonzero((free > 0) & (rows[:, other] == 0)):
                    rows[row, other], rows[row, expert], rows[third, other] = 0, 1, 1
                    return
        for row in np.flatnonzero(rows[:, expert] == 0):
            spare = [other for other in np.flatnonzero(rows[row]) if copies[other] > copies[expert] + 1]
            if spare:
                other = max(spare, key=lambda expert: (copies[expert], expert))
                rows[row, other], rows[row, expert] = 0, 1
                return


def as_matrix(loads: Sequence[Sequence[float]] | None, num_experts: int) -> Matrix:
    """Return the loads as [L, E].

    If nothing was measured, return one layer with equal load for all experts.
    """
    matrix = np.asarray(loads, dtype=np.float64) if loads else np.zeros((1, num_experts))
    return matrix if matrix.sum() > 0 else np.ones((1, num_experts))


def cost(matrix: Matrix, rows: Matrix) -> float:
    """Return the load of the most loaded actor in each layer, summed over the layers."""
    return float(_costs(matrix, rows[None])[0])


def num_violations(board: Board, rows: Matrix) -> int:
    """Count the replicas that share a node with another replica although other nodes have none."""
    return int(_violations(board, rows[None])[0])


def improve(board: Board, rows: Matrix, matrix: Matrix, least_gain: float) -> Matrix:
    """Exchange experts between slots, and return the occupation [A, E] that results.

    Go on for as long as a step saves the part `least_gain` of the cost or takes two replicas to different
    nodes.
    """
    for _ in range(_MAX_STEPS):
        scale = cost(matrix, rows)
        now = scale + _SAME_NODE * scale * num_violations(board, rows)
        candidates = _neighbours(board, rows)
        if not len(candidates):
            return rows
        costs = _costs(matrix, candidates) + _SAME_NODE * scale * _violations(board, candidates)
        best = int(np.argmin(costs))
        if costs[best] > now - max(least_gain, 1e-9) * scale:
            return rows
        rows = candidates[best]
    return rows


def _costs(matrix: Matrix, rows: Matrix) -> Matrix:
    """Return the costs [N] of occupations [N, A, E]."""
    shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    done: Matrix = np.einsum("le,nae->nla", matrix, shares, optimize=True)
    total: Matrix = done.max(axis=2).sum(axis=1)
    return total


def _violations(board: Board, rows: Matrix) -> Matrix:
    """Return `num_violations` [N] of occupations [N, A, E]."""
    members = board.node_matrix()
    copies = rows.sum(axis=1)
    spread = (np.einsum("ka,nae->nke", members, rows, optimize=True) > 0).sum(axis=1)
    wanted = np.minimum(np.minimum(copies, max(2, board.num_replicas)), len(members))
    missing: Matrix = np.maximum(wanted - spread, 0).sum(axis=1).astype(np.float64)
    return missing


def _neighbours(board: Board, rows: Matrix) -> Matrix:
    """Return all occupations [N, A, E] that are one step away.

    A step exchanges the experts of two slots, or puts another expert in place of a spare replica.
    """
    copies = rows.sum(axis=0)
    changes: list[tuple[tuple[int, int, int], ...]] = []
    taken = [(int(row), int(expert)) for row, expert in np.argwhere(rows)]
    for row, expert in taken:
        for other_row, other in taken:
            if row < other_row and not rows[row, other] and not rows[other_row, expert]:
                changes.append(
                    ((row, expert, 0), (other_row, other, 0), (row, other, 1), (other_row, expert, 1))
                )
        if copies[expert] > board.num_replicas:
            changes += [((row, expert, 0), (row, int(new), 1)) for new in np.flatnonzero(rows[row] == 0)]
    candidates = np.repeat(rows[None], len(changes), axis=0)
    for number, change in enumerate(changes):
        for row, expert, value in change:
            candidates[number, row, expert] = value
    return candidates
