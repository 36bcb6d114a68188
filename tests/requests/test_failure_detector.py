"""Tests when a dense actor that sends nothing counts as hung."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.requests.failure_detector import MOST_SECONDS, TICK_SECONDS, FailureDetector

LEAST = 0.75


def be_quiet(detector: FailureDetector, seconds: float) -> bool:
    """Let time pass without a frame; return whether the actor then counts as hung."""
    return max(detector.passed(TICK_SECONDS) for _ in range(round(seconds / TICK_SECONDS)))


def test_regular_heartbeats_keep_the_shortest_time_out() -> None:
    detector = FailureDetector(LEAST)
    for _ in range(100):
        assert not be_quiet(detector, 0.2)
        detector.heard()
    assert detector.allowed_seconds == LEAST
    assert not be_quiet(detector, 0.7) and be_quiet(detector, 0.2)


def test_irregular_heartbeats_raise_the_time_out_and_regular_ones_lower_it_again() -> None:
    detector = FailureDetector(LEAST)
    assert not be_quiet(detector, 0.7)
    detector.heard()
    assert detector.allowed_seconds > 1.9
    assert not be_quiet(detector, 1.8)
    detector.heard()
    for _ in range(600):
        be_quiet(detector, 0.2)
        detector.heard()
    assert detector.allowed_seconds == LEAST


def test_after_a_time_out_the_next_one_is_a_little_longer() -> None:
    detector = FailureDetector(LEAST)
    assert be_quiet(detector, 1.0)
    detector.begin()
    assert LEAST * 1.4 < detector.allowed_seconds <= LEAST * 1.5
    assert be_quiet(detector, 1.4)


def test_time_in_which_the_listener_slept_itself_does_not_count() -> None:
    detector = FailureDetector(LEAST)
    assert not detector.passed(10.0) and not detector.passed(10.0)
    detector.heard()
    assert detector.allowed_seconds <= 3 * 0.4


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=200))
def test_the_time_out_is_bounded(history: list[tuple[float, bool]]) -> None:
    detector = FailureDetector(LEAST)
    for seconds, is_heard in history:
        if detector.passed(seconds):
            detector.begin()
        elif is_heard:
            detector.heard()
        assert LEAST <= detector.allowed_seconds <= MOST_SECONDS
