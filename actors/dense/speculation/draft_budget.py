"""How many guessed tokens (drafts) a step computes beside the tokens of its sequences. Pure: measurements in,
numbers out.

A step computes one row for each of its B sequences and one for each draft. It takes `base + per_row * rows`
seconds, a line that is fitted to the steps before. A sequence whose drafts are right with probability a gets
1 + a + a^2 + ... tokens from the step, and every further draft makes the step longer for all B sequences. The
drafts of a step are chosen so that the product of the speeds of all sequences is largest. They are added one
after the other, as long as

    log(its sequence's tokens with the draft / without)  >  B * log(the step's seconds with its row / without)

With one sequence this maximises tokens per second. With many, no draft costs the other sequences more than it
gains. If a further row takes as long as each row of the step does on average, as in a full batch, there are
no drafts at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from math import log1p

_FORGET = 0.97
"""Factor by which the weight of a step falls with each later step. The line thus follows about the last
thirty steps."""
_MOST_OUTLIER = 2.0
"""A measurement counts as at most this many times the expected duration."""
_GUESSED_ROW_COST = 0.5
"""Guessed seconds of a further row, as a share of a step's seconds per row. It is used while steps do not
differ in rows, and is rather too high than too low."""
_DOUBT = 0.01
"""Share of the difference to the guess by which the learnt cost of a further row returns to it, with each
step that teaches nothing about it. Otherwise a cost that chance has made so high that no draft is tried would
never change."""
_PRIOR_ROWS = 1.0
"""Weight of the earlier slope against the steps since, as a variance of rows. If all steps have the same
number of rows, they say nothing about the slope."""
_MARGIN = 1.1
"""Factor by which a draft must be worth more than its row costs, since measurements have errors."""


class StepCost:
    """The line that gives the seconds of a step by its number of rows. It is told of every step that only
    decodes."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._mean_rows = 0.0
        self._mean_seconds = 0.0
        self._variance = 0.0
        self._covariance = 0.0
        self._row_cost = _GUESSED_ROW_COST
        """Seconds of a further row, as a share of the seconds per row."""
        self.per_row = 0.0
        """Seconds that one more row takes."""

    @property
    def is_known(self) -> bool:
        """Whether any step was recorded yet."""
        return self._weight > 0

    def seconds(self, num_rows: float) -> float:
        """Expected seconds of a step with `num_rows` rows."""
        return max(self._mean_seconds + self.per_row * (num_rows - self._mean_rows), self.per_row)

    def note(self, num_rows: int, seconds: float) -> None:
        """Record that a step with `num_rows` rows took `seconds`."""
        if self.is_known:
            # If a step waited for an expert actor, its duration says nothing about the next step.
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
        """Mean seconds of recent steps divided by their mean rows. One row cannot cost more, since a step
        without rows takes no negative time."""
        return self._mean_seconds / self._mean_rows


def draft_counts(
    acceptance: Sequence[float], limits: Sequence[int], budget: int, cost: StepCost
) -> list[int]:
    """The number of drafts for each sequence of a step: at most its limit, and at most `budget` for all
    together."""
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
