"""When a silent dense actor counts as hung."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.requests.failure_detector import MOST_SECONDS, TICK_SECONDS, Silence

LEAST = 0.75


def be_quiet(silence: Silence, seconds: float) -> bool:
    """Ticks in time, without a frame; whether it was too long."""
    return max(silence.passed(TICK_SECONDS) for _ in range(round(seconds / TICK_SECONDS)))


def test_a_steady_beat_allows_the_least() -> None:
    silence = Silence(LEAST)
    for _ in range(100):
        assert not be_quiet(silence, 0.2)
        silence.heard()
    assert silence.allowed_seconds == LEAST
    assert not be_quiet(silence, 0.7) and be_quiet(silence, 0.2)


def test_irregular_beats_allow_more_and_calm_ones_less_again() -> None:
    silence = Silence(LEAST)
    assert not be_quiet(silence, 0.7)
    silence.heard()
    assert silence.allowed_seconds > 1.9
    assert not be_quiet(silence, 1.8)
    silence.heard()
    for _ in range(600):
        be_quiet(silence, 0.2)
        silence.heard()
    assert silence.allowed_seconds == LEAST


def test_after_a_silence_that_was_too_long_a_little_more_is_allowed() -> None:
    silence = Silence(LEAST)
    assert be_quiet(silence, 1.0)
    silence.begin()
    assert LEAST * 1.4 < silence.allowed_seconds <= LEAST * 1.5
    assert be_quiet(silence, 1.4)


def test_time_in_which_the_listener_slept_itself_does_not_count() -> None:
    silence = Silence(LEAST)
    assert not silence.passed(10.0) and not silence.passed(10.0)
    silence.heard()
    assert silence.allowed_seconds <= 3 * 0.4


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=200))
def test_the_allowance_is_bounded(history: list[tuple[float, bool]]) -> None:
    silence = Silence(LEAST)
    for seconds, is_heard in history:
        if silence.passed(seconds):
            silence.begin()
        elif is_heard:
            silence.heard()
        assert LEAST <= silence.allowed_seconds <= MOST_SECONDS
