"""Tests when the experts of an absent actor go to others, and when the actor gets experts again."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.supervisor.operations.absences import Absences

AFTER = 20.0
EVERYBODY = frozenset(range(4))


class Service:
    """Four expert actors, and a supervisor that at once does what is decided."""

    def __init__(self, after_seconds: float = AFTER) -> None:
        self.absences = Absences(after_seconds=after_seconds)
        self.replaced: frozenset[int] = frozenset()
        self.missing: set[int] = set()
        self.loading: set[int] = set()
        self.now = 0.0
        self.changes: list[tuple[float, frozenset[int]]] = []

    def check(self) -> frozenset[int] | None:
        alive = EVERYBODY - self.missing
        up = alive - self.loading - self.replaced
        self.absences = self.absences.watch(EVERYBODY, alive, up, self.replaced, self.now)
        return self.absences.decide(self.replaced, self.now)

    def run(self, seconds: float, step: float = 1.0) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step
            away = self.check()
            if away is not None and away != EVERYBODY:
                assert away != self.replaced
                self.absences = self.absences.switched(self.replaced, away, self.now)
                self.replaced = away
                self.changes.append((self.now, away))


def test_an_actor_that_comes_back_in_time_keeps_its_experts() -> None:
    service = Service()
    service.run(5)
    service.missing = {1}
    service.run(15)
    service.missing, service.loading = set(), {1}
    service.run(300)
    service.loading = set()
    service.run(300)
    assert service.changes == []


def test_an_actor_that_stays_away_is_replaced_and_gets_experts_back_once_it_has_been_there_for_a_while() -> (
    None
):
    service = Service()
    service.run(5)
    service.missing = {1}
    service.run(100)
    assert service.changes == [(5 + 1 + AFTER, frozenset({1}))]
    service.missing = set()
    service.run(100)
    assert service.changes[1:] == [(105 + 1 + AFTER, frozenset())]


def test_an_actor_that_comes_and_goes_is_given_experts_ever_less_often() -> None:
    service = Service()
    service.missing = {1}
    for _ in range(200):
        service.run(30)
        service.missing ^= {1}
    returns = [at for at, away in service.changes if not away]
    assert len(returns) == 1
    service.missing = set()
    service.run(3600)
    assert service.replaced == frozenset()


def test_a_crash_loop_counts_as_an_absence_that_goes_on() -> None:
    service = Service()
    for _ in range(10):
        service.missing, service.loading = {2}, set()
        service.run(1)
        service.missing, service.loading = set(), {2}
        service.run(3)
    assert service.changes and service.changes[0][1] == {2}


def test_one_that_is_missing_for_a_shorter_time_is_waited_for_and_then_counts_as_away() -> None:
    service = Service()
    service.missing = {1}
    service.run(10)
    service.missing = {1, 3}
    service.run(40)
    assert service.changes == [(1 + 10 + AFTER, frozenset({1, 3}))]
    back = Service()
    back.missing = {1}
    back.run(10)
    back.missing = {1, 3}
    back.run(12)
    back.missing = {1}
    back.run(5)
    assert [away for _, away in back.changes] == [{1}]


def test_with_0_nobody_is_replaced_but_who_was_gets_experts_back() -> None:
    service = Service(after_seconds=0)
    service.missing = {1}
    service.run(1000)
    assert service.changes == []
    service.replaced = frozenset({1})
    service.missing = set()
    service.run(30)
    assert service.replaced == frozenset()


def test_a_failed_attempt_is_repeated_later_each_time() -> None:
    absences = Absences(after_seconds=AFTER)
    attempts, now = [], 0.0
    while now < 1000:
        absences = absences.watch(EVERYBODY, EVERYBODY - {1}, EVERYBODY - {1}, frozenset(), now)
        if absences.decide(frozenset(), now) is not None:
            attempts.append(now)
            absences = absences.failed(frozenset(), now)
        now += 1
    pauses = [later - earlier for earlier, later in pairwise(attempts)]
    assert attempts[0] == AFTER and pauses == [AFTER * 2**count for count in range(len(pauses))]
    assert len(pauses) > 3


@settings(max_examples=60)
@given(phases=st.lists(st.tuples(st.sets(st.integers(0, 3)), st.integers(1, 90)), max_size=12))
def test_whatever_comes_and_goes_in_the_end_everybody_has_experts(phases: list[tuple[set[int], int]]) -> None:
    service = Service()
    for missing, seconds in phases:
        service.missing = set(missing)
        service.run(seconds)
        stays = {index for index in missing if service.absences.is_away(index, service.now)}
        if seconds >= 3 * AFTER and missing != EVERYBODY:
            assert stays == missing == service.replaced & missing
    service.missing = set()
    service.run(4000, step=10.0)
    assert service.replaced == frozenset()
