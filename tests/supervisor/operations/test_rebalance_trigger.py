"""Tests the loads over time, and the hysteresis before a rebalance."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.supervisor.operations.rebalance_trigger import Hysteresis, RecentLoads

PATIENT = Hysteresis(threshold=0.1, interval_seconds=60)


def decisions(watch: Hysteresis, gains: list[tuple[float, float]]) -> list[float]:
    """Return the times at which a rebalance is decided."""
    times = []
    for now, gain in gains:
        watch, is_time = watch.watch(gain, now)
        if is_time:
            times.append(now)
    return times


def test_a_gain_that_lasts_leads_to_one_rebalance_per_interval() -> None:
    assert decisions(PATIENT, [(now, 0.2) for now in range(0, 150, 10)]) == [60, 130]


def test_a_gain_that_breaks_off_begins_anew() -> None:
    gains = [(0, 0.2), (50, 0.2), (55, 0.05), (65, 0.2), (120, 0.2), (125, 0.2)]
    assert decisions(PATIENT, [(float(now), gain) for now, gain in gains]) == [125]


def test_without_an_interval_nothing_is_ever_decided() -> None:
    assert decisions(Hysteresis(threshold=0, interval_seconds=0), [(t, 1.0) for t in range(100)]) == []


@given(st.lists(st.floats(0, 0.09), max_size=50))
def test_a_gain_below_the_threshold_never_leads_to_one(gains: list[float]) -> None:
    assert decisions(PATIENT, [(60.0 * number, gain) for number, gain in enumerate(gains)]) == []


def counts(first: int, others: int = 100) -> tuple[tuple[int, ...], ...]:
    return ((first, *[others] * 15),) * 2


def test_only_what_is_new_counts_and_old_rows_fade() -> None:
    loads = RecentLoads(half_life_seconds=10).add("a", counts(100), 0)
    loads = loads.add("a", counts(500), 10)
    rows = loads.loads()
    assert rows is not None and rows[0] == [450.0, *[50.0] * 15]


def test_a_process_that_began_anew_counts_from_its_start() -> None:
    loads = RecentLoads(half_life_seconds=1e9).add("a", counts(100), 0).add("b", counts(100), 0)
    rows = loads.loads()
    assert rows is not None and rows[1][0] == 200


def test_a_few_rows_say_nothing() -> None:
    assert RecentLoads().loads() is None
    assert RecentLoads().add("a", counts(3, 3), 0).loads() is None
    assert RecentLoads().add("a", (), 0).loads() is None


def test_a_dense_actor_in_its_first_step_has_not_counted_all_layers_yet() -> None:
    full = counts(100)
    loads = RecentLoads(half_life_seconds=1e9).add("a", full[:1], 0).add("a", full, 0).add("b", full[:1], 0)
    rows = loads.loads()
    assert rows is not None and [layer[0] for layer in rows] == [200.0, 100.0]
