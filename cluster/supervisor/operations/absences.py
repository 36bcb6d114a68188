"""Decides when the experts of an absent actor go to others, and when the actor gets experts again. Pure.

    up --not up for `after_seconds`, and no sign of life--> away: the others hold its experts
    away --signs of life without a break, long enough--> back: experts are placed on it again

An actor that returns must first give signs of life for some time. This time doubles with each further absence
of the same actor, so that an actor which fails again and again does not cause experts to be moved each time.
All times are arguments: this module reads no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

_LONGEST_SECONDS = 1800.0
"""Longest pause between two attempts, and longest time before a returning actor gets experts again."""
_FORGIVEN_SECONDS = 3600.0
"""After this time without a break in service, an actor's earlier absences no longer count."""
_SETTLE_SECONDS = 20.0
"""Takes the place of `after_seconds` if that is 0: actors may have been replaced before replacement was
switched off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Absences:
    """What is known of each expert actor's absence.

    Times are seconds of one clock; actors are known by index.
    """

    after_seconds: float
    """An actor without a sign of life for this time is replaced; 0 means never."""
    alive: frozenset[int] = frozenset()
    """Actors whose process gives signs of life, even if it does not serve yet."""
    gone: Mapping[int, float] = field(default_factory=dict)
    """For each actor that is not up, when it was up last."""
    back: Mapping[int, float] = field(default_factory=dict)
    """For each replaced actor that is alive, since when it has given signs of life without a break."""
    steady: Mapping[int, float] = field(default_factory=dict)
    """For each actor that is up and not replaced, since when it has been up without a break."""
    num_times: Mapping[int, int] = field(default_factory=dict)
    """How often each actor was replaced."""
    not_before: float = 0.0
    """When the next attempt may begin."""
    num_failures: int = 0
    """Number of failed attempts since the last successful one."""

    def watch(
        self, all_: Set[int], alive: Set[int], up: Set[int], replaced: Set[int], now: float
    ) -> Absences:
        """Return the absences after a check of all actors.

        `alive` are the actors that give signs of life, `up` those that serve, and `replaced` those whose
        experts others hold at present.
        """
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
        """Whether this actor has been absent for `after_seconds`, so that nothing should wait for it."""
        return (
            self.after_seconds > 0
            and index not in self.alive
            and index in self.gone
            and now - self.gone[index] >= self.after_seconds
        )

    def decide(self, replaced: Set[int], now: float) -> frozenset[int] | None:
        """Return the actors whose experts the others should hold, or None if nothing should change.

        If another actor has been missing for a shorter time than one that is away, wait for it up to
        `after_seconds` more, then treat both as away. While any actor is missing, no actor gets experts back.
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
        """Return the absences after a successful attempt.

        Before the attempt the other actors held the experts of those in `before`, now of those in `after`. If
        both are equal there was nothing to do, and the next attempt comes only after a pause.
        """
        counts = {index: self.num_times.get(index, 0) + 1 for index in sorted(after - before)}
        not_before = now + self._pause_seconds(0) if after == before else 0.0
        return replace(self, num_times={**self.num_times, **counts}, num_failures=0, not_before=not_before)

    def failed(self, returning: Set[int], now: float) -> Absences:
        """Return the absences after a failed attempt, which was to give `returning` experts again.

        The pause before the next attempt doubles each time. The actors in `returning` have to give signs of
        life for some time again.
        """
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
