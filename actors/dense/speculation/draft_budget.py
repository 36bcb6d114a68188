"""How many guessed tokens (drafts) a step computes beside its sequences' own. Pure: measurements in, numbers out.

A step computes one row for each of its B sequences and one for each draft; it takes `base + per_row * rows` seconds, a line
through the steps before. A sequence whose drafts are right with probability a gets 1 + a + a^2 + ... tokens out of it,
and every further draft makes the step longer for all B. The drafts of a step are chosen so that the product of all
sequences' speeds is largest, one after the other, for as long as

    log(its sequence's tokens with the draft / without)  >  B * log(the step's seconds with its row / without)

So with one sequence the tokens per second decide; with many, nobody's neighbours pay more than is gained; and where rows
cost what steps cost, as in a full batch, there are no drafts at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from math import log1p

_FORGET = 0.97
"""What a step counts for when the next one is over: the line follows some thirty steps."""
_MOST_OUTLIER = 2.0
_GUESSED_ROW_COST = 0.5
"""Of what a step takes per row: what a further row costs while steps do not differ in rows. On the safe side."""
_DOUBT = 0.01
"""By how much of the difference what was learnt of a further row goes back to the guess with every such step: a price that chance
has made so high that no draft is tried would else stand for ever."""
_PRIOR_ROWS = 1.0
"""How much the slope of before counts beside the steps since, as a variance of rows: where all steps have equally many
rows, these say nothing of the slope."""
_MARGIN = 1.1
"""By what factor a draft has to be worth its row: measurements err."""


class StepCost:
    """The line: seconds of a step by its rows. Told of every step that only decodes."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._mean_rows = 0.0
        self._mean_seconds = 0.0
        self._variance = 0.0
        self._covariance = 0.0
        self._row_cost = _GUESSED_ROW_COST
        """Seconds of a further row over those per row."""
        self.per_row = 0.0
        """Seconds that one more row takes."""

    @property
    def is_known(self) -> bool:
        """Whether there was a step yet."""
        return self._weight > 0

    def seconds(self, num_rows: float) -> float:
        """Of a step with so many rows."""
        return max(self._mean_seconds + self.per_row * (num_rows - self._mean_rows), self.per_row)

    def note(self, num_rows: int, seconds: float) -> None:
        """A step with so many rows took so long."""
        if self.is_known:
            # A step that waited for an expert actor says nothing of the next one.
            seconds = min(seconds, _MOST_OUTLIER * self.seconds(num_rows))
        self._weight = _FORGET * self._weight + 1
        share = 1 / self._weight
        rows_off, seconds_off = num_rows - self._mean_rows, seconds - self._mean_seconds
        self._mean_rows += share * rows_off
        self._mean_seconds += share * seconds_off
        self._variance = (1 - share) * (self._variance + share * rows_off * rows_off)
        self._covariance = (1 - share) * (self._covariance + share * rows_off * seconds_off)
        prior = share * _PRIOR_ROWS
        if self._variance < prior:
            self._row_cost += _DOUBT * (_GUESSED_ROW_COST - self._row_cost)
        expected = self._row_cost * self.seconds_per_row
        slope = (self._covariance + prior * expected) / (self._variance + prior)
        self.per_row = min(max(slope, 0.0), self.seconds_per_row)
        if self.seconds_per_row > 0:
            self._row_cost = self.per_row / self.seconds_per_row

    @property
    def seconds_per_row(self) -> float:
        """Of recent steps: no row can cost more, since a step of no rows takes no negative time."""
        return self._mean_seconds / self._mean_rows


def draft_counts(
    acceptance: Sequence[float], limits: Sequence[int], budget: int, cost: StepCost
) -> list[int]:
    """For each sequence of a step, how many drafts to compute: at most its limit, and `budget` together.

    acceptance: the probability that a sequence's next draft is right, given that those before it were.
    """
    counts = [0] * len(limits)
    if not cost.is_known:
        return counts
    num_sequences = len(limits)
    speed = [1.0] * num_sequences
    chance = list(acceptance)
    heap = [(-log1p(chance[index]), index) for index in range(num_sequences) if limits[index] > 0]
    heapify(heap)
    for num_drafts in range(budget):
        if not heap:
            break
        price = num_sequences * log1p(cost.per_row / cost.seconds(num_sequences + num_drafts))
        loss, index = heap[0]
        if -loss <= _MARGIN * price:
            break
        counts[index] += 1
        speed[index] += chance[index]
        chance[index] *= acceptance[index]
        left = chance[index] if counts[index] < limits[index] else 0.0
        heapreplace(heap, (-log1p(left / speed[index]), index))
    return counts
