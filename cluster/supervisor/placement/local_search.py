"""How experts are put into slots: fill, then improve step by step. Pure.

An occupation is a matrix [A, E] of 0 and 1: actor a has a slot for expert e. Legend: A actors, E experts, L layers, N candidates.
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
"""What a replica on the same node as another one costs, in units of the present cost: more than any balance can save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """The actors of a placement, ordered by index, and what is asked of it."""

    indices: tuple[int, ...]
    nodes: tuple[str, ...]
    capacities: tuple[int, ...]
    """PlacementReconciler of each actor, at most E."""
    num_experts: int
    num_replicas: int
    """Replicas that every expert has, at most A."""

    def keep(self, slots: Mapping[int, Sequence[int]]) -> Matrix:
        """[A, E] what of these slots the actors have room for; experts with the fewest replicas stay."""
        rows = np.zeros((len(self.indices), self.num_experts))
        for row, index in enumerate(self.indices):
            rows[row, list(slots.get(index, ()))] = 1
        for row, capacity in enumerate(self.capacities):
            while rows[row].sum() > capacity:
                held = np.flatnonzero(rows[row])
                rows[row, max(held, key=lambda expert: (rows[:, expert].sum(), expert))] = 0
        return rows

    def slots(self, rows: Matrix) -> dict[int, tuple[int, ...]]:
        """Index -> experts, ascending."""
        return {
            index: tuple(int(expert) for expert in np.flatnonzero(row))
            for index, row in zip(self.indices, rows, strict=True)
        }

    def match(self, rows: Matrix, present: Matrix) -> Matrix:
        """[A, E] the same rows, given to other actors of the same node and capacity where those hold more of them."""
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
        """[A, E] with all slots taken: first one replica of every expert, then a second one ..., then what is hot."""
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
        """[number of nodes, A] 1 where the actor is on the node."""
        names = sorted(set(self.nodes))
        return np.array([[float(node == name) for node in self.nodes] for name in names])

    def _free_actor(self, rows: Matrix, expert: int) -> int | None:
        """Where a replica goes: to a node that has none, of these to the one with the most free slots, there likewise."""
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
        """One more replica, where need be in the slot of an expert that moves on or that has replicas to spare."""
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
    """[L, E]; one layer in which all experts have the same to do, where nothing was measured."""
    matrix = np.asarray(loads, dtype=np.float64) if loads else np.zeros((1, num_experts))
    return matrix if matrix.sum() > 0 else np.ones((1, num_experts))


def cost(matrix: Matrix, rows: Matrix) -> float:
    """Sum over the layers of what the most loaded actor has to do."""
    return float(_costs(matrix, rows[None])[0])


def num_violations(board: Board, rows: Matrix) -> int:
    """Replicas that share a node with another one although there are nodes without one."""
    return int(_violations(board, rows[None])[0])


def improve(board: Board, rows: Matrix, matrix: Matrix, least_gain: float) -> Matrix:
    """Exchange experts between slots for as long as a step saves `least_gain` of the cost, or parts two replicas."""
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
    """[N] from [N, A, E]."""
    shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    done: Matrix = np.einsum("le,nae->nla", matrix, shares, optimize=True)
    total: Matrix = done.max(axis=2).sum(axis=1)
    return total


def _violations(board: Board, rows: Matrix) -> Matrix:
    """[N] from [N, A, E]."""
    members = board.node_matrix()
    copies = rows.sum(axis=1)
    spread = (np.einsum("ka,nae->nke", members, rows, optimize=True) > 0).sum(axis=1)
    wanted = np.minimum(np.minimum(copies, max(2, board.num_replicas)), len(members))
    missing: Matrix = np.maximum(wanted - spread, 0).sum(axis=1).astype(np.float64)
    return missing


def _neighbours(board: Board, rows: Matrix) -> Matrix:
    """[N, A, E] all occupations that one exchange of two slots, or one new expert for a spare replica, leads to."""
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
