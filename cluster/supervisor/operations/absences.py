"""When experts of an actor that stays away go to others, and when they go back to it. Pure: no clock.

    up --gone for `after_seconds`, and still no sign of life--> away: the others hold its experts
    away --signs of life without a break for a while--> back: experts are placed anew, on it too

That while is longer every time that the same actor is away again, so that one that comes and goes moves nothing to and fro.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

_LONGEST_SECONDS = 1800.0
"""Between two attempts, and before an actor that was away many times gets experts again."""
_FORGIVEN_SECONDS = 3600.0
"""One that was up for so long counts as never away."""
_SETTLE_SECONDS = 20.0
"""How long signs of life must last where nobody is ever replaced any longer, but somebody was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Absences:
    """What is known of each expert actor's absence. Times are seconds of one clock."""

    after_seconds: float
    """0 means that nobody is ever replaced."""
    alive: frozenset[int] = frozenset()
    """Indices of the actors whose process gives signs of life, even if it does not serve yet."""
    gone: Mapping[int, float] = field(default_factory=dict)
    """When each actor that is not up was up last."""
    back: Mapping[int, float] = field(default_factory=dict)
    """Of those that were replaced: since when each has given signs of life without a break."""
    steady: Mapping[int, float] = field(default_factory=dict)
    """Since when each of the others has been up without a break."""
    num_times: Mapping[int, int] = field(default_factory=dict)
    """How often each was replaced."""
    not_before: float = 0.0
    """When the next attempt may begin."""
    num_failures: int = 0
    """Attempts on end that failed."""

    def watch(
        self, all_: Set[int], alive: Set[int], up: Set[int], replaced: Set[int], now: float
    ) -> Absences:
        """After a look at all actors: who gives signs of life, who serves, and whose experts others hold at present."""
        steady = {index: self.steady.get(index, now) for index in sorted(up - replaced)}
        forgiven = {index for index, since in steady.items() if now - since >= _FORGIVEN_SECONDS}
        return replace(
            self,
            alive=frozenset(alive),
            gone={index: self.gone.get(index, now) for index in sorted(all_ - up)},
            back={index: self.back.get(index, now) for index in sorted(alive & replaced)},
            steady=steady,
            num_times={index: count for index, count in self.num_times.items() if index not in forgiven},
        )

    def is_away(self, index: int, now: float) -> bool:
        """Whether it is not worth while to wait for this actor any longer."""
        return (
            self.after_seconds > 0
            and index not in self.alive
            and index in self.gone
            and now - self.gone[index] >= self.after_seconds
        )

    def decide(self, replaced: Set[int], now: float) -> frozenset[int] | None:
        """Whose experts others should hold, where those are not the ones whose experts they hold; None: leave it.

        One that is missing for a shorter time may share the fate of one that is away: for a while it is waited for, and
        then counts as away as well. While anybody is missing nobody gets experts back.
        """
        if now < self.not_before:
            return None
        missing = {index for index in self.gone if index not in self.alive}
        away = {index for index in missing if self.is_away(index, now)}
        returned = {index for index, since in self.back.items() if now - since >= self._settle_seconds(index)}
        if away - replaced:
            first = min(self.gone[index] for index in away - replaced)
            if missing - away and now - first < 2 * self.after_seconds:
                return None
            return frozenset(missing | (replaced - returned))
        if returned and not missing - replaced:
            return frozenset(replaced - returned)
        return None

    def switched(self, before: Set[int], after: Set[int], now: float) -> Absences:
        """After an attempt that succeeded: whose experts others held, and hold now.

        Where that is the same, there was nothing to do, nor will there be at once.
        """
        counts = {index: self.num_times.get(index, 0) + 1 for index in sorted(after - before)}
        not_before = now + self._pause_seconds(0) if after == before else 0.0
        return replace(self, num_times={**self.num_times, **counts}, num_failures=0, not_before=not_before)

    def failed(self, returning: Set[int], now: float) -> Absences:
        """After an attempt that failed: the next one comes later each time, and those that were to return begin anew."""
        pause = self._pause_seconds(self.num_failures)
        counts = {index: self.num_times.get(index, 0) + 1 for index in sorted(returning)}
        return replace(
            self,
            back={index: since for index, since in self.back.items() if index not in returning},
            num_times={**self.num_times, **counts},
            not_before=now + pause,
            num_failures=self.num_failures + 1,
        )

    def _settle_seconds(self, index: int) -> float:
        return self._pause_seconds(max(0, self.num_times.get(index, 0) - 1))

    def _pause_seconds(self, exponent: int) -> float:
        base = self.after_seconds or _SETTLE_SECONDS
        return max(base, min(_LONGEST_SECONDS, base * 2.0 ** min(exponent, 32)))
