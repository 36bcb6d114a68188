"""How many experts a batch touches, if every token chooses its K of E experts evenly and independently.

A small batch leaves some experts untouched, and untouched weights are not read. The touched experts are
spread unevenly over the actors, and a layer waits for the busiest actor.
"""

from __future__ import annotations

import functools
import math

from actors.exchange.row_assignment import MIN_PART_ROWS
from cluster.commands.plan.shape import Shape


def distinct_experts(num_tokens: float, num_experts: int, num_chosen: int) -> float:
    """Expected number of experts with at least one token: E * (1 - (1 - K / E) ** B).

    A token misses a given expert with probability 1 - K / E.
    """
    missed: float = (1.0 - num_chosen / num_experts) ** num_tokens
    return num_experts * (1.0 - missed)


@functools.lru_cache(maxsize=4096)
def busiest_actor(num_touched: int, num_experts: int, num_actors: int) -> float:
    """Expected number of touched experts on the actor that has the most, with one copy of each expert, spread
    evenly.

    The result is exact for d = `num_touched` experts drawn without repetition. With s_i experts on actor i,
    the number of draws that put at most k on every actor is the coefficient of x^d in prod_i sum_{j <= min(k,
    s_i)} C(s_i, j) x^j; there are C(E, d) draws in all.
    """
    sizes = [num_experts // num_actors + (actor < num_experts % num_actors) for actor in range(num_actors)]
    expected, most = 0.0, max(sizes)
    # E[max] = sum over k of P(max > k).
    for limit in range(most):
        polynomial = [1] + [0] * num_touched
        for size in sizes:
            factor = [math.comb(size, j) for j in range(min(limit, size, num_touched) + 1)]
            polynomial = [
                sum(factor[j] * polynomial[d - j] for j in range(min(d, len(factor) - 1) + 1))
                for d in range(num_touched + 1)
            ]
        expected += 1.0 - polynomial[num_touched] / math.comb(num_experts, num_touched)
    return expected


def expert_share(shape: Shape, num_tokens: float, num_actors: int, num_replicas: int) -> tuple[float, float]:
    """(experts whose weights the busiest actor reads, rows that it computes) in one layer, for tokens of all
    dense actors.

    An expert with few rows is computed by one holder (`actors.exchange.row_assignment`). With replicas the
    less busy holder computes it, which makes the load of the actors even, and an expert with many rows is
    read by several.
    """
    touched = distinct_experts(num_tokens, shape.num_experts, shape.num_experts_per_token)
    rows = num_tokens * shape.num_experts_per_token
    if num_replicas == 1:
        low = math.floor(touched)
        busiest = busiest_actor(low, shape.num_experts, num_actors)
        if touched > low:
            next_busiest = busiest_actor(low + 1, shape.num_experts, num_actors)
            busiest += (touched - low) * (next_busiest - busiest)
        return busiest, rows * busiest / touched
    parts = (rows / touched) // MIN_PART_ROWS
    read = touched * (1 if parts < 2 else min(num_replicas, parts))
    busiest = max(read / num_actors, 1.0)
    return busiest, max(rows / num_actors, rows * busiest / read)
