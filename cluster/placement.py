"""Which expert actor holds which experts, and how many threads each actor gets. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.config import NUM_EXPERTS


def spread_experts(num_actors: int, num_experts: int = NUM_EXPERTS) -> tuple[tuple[int, ...], ...]:
    """The experts of each expert actor: contiguous, every expert exactly once, sizes that differ by at most one.

        16 experts on 3 actors    0 1 2 3 4 5 | 6 7 8 9 10 | 11 12 13 14 15

    Raises ValueError for more actors than experts: one of them would have no work.
    """
    if not 0 <= num_actors <= num_experts:
        raise ValueError(f"num_actors is {num_actors}, expected 0 to {num_experts}")
    if num_actors == 0:
        return ()
    smaller, rest = divmod(num_experts, num_actors)
    sizes = [smaller + (index < rest) for index in range(num_actors)]
    starts = [sum(sizes[:index]) for index in range(num_actors)]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Threads:
    """Compute threads of each kind of actor."""

    dense: int
    expert: int


def share_threads(num_cores: int, num_expert_actors: int, num_nodes: int = 1) -> Threads:
    """Threads for nodes of `num_cores` cores each.

    Dense and expert actors of one step take turns, expert actors run side by side: so the dense actor gets all cores of
    its node and the expert actors of a node share them.
    """
    per_node = -(-num_expert_actors // max(1, num_nodes))
    return Threads(dense=max(1, num_cores), expert=max(1, num_cores // max(1, per_node)))
