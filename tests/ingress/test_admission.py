"""How many requests and tokens an ingress replica accepts, and when it asks a refused client to retry."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.ingress.admission import Admission, Bounds

BOUNDS = Bounds(max_requests=4, max_tokens=1000)


def test_requests_are_bounded_and_their_places_return() -> None:
    admission = Admission(BOUNDS)
    for _ in range(4):
        assert admission.refusal(10) is None
        admission.begin(10)
    assert admission.refusal(10) == "4 requests are under way, which is the most at a time"
    admission.end(10, 1.0)
    assert admission.refusal(10) is None


def test_prompt_tokens_are_bounded_but_one_request_alone_is_taken() -> None:
    admission = Admission(BOUNDS)
    assert admission.refusal(5000) is None
    admission.begin(5000)
    assert admission.refusal(1) == "5000 tokens of prompts are under way, 1000 are the most at a time"


def test_retry_after_follows_the_measured_rate() -> None:
    def asked(completions_per_second: float) -> int:
        admission = Admission(Bounds(max_requests=400, max_tokens=10**9))
        for number in range(100):
            admission.begin(1)
            admission.end(1, number / completions_per_second)
        return admission.retry_after_seconds(100 / completions_per_second)

    assert asked(100.0) in (1, 2)
    assert 10 <= asked(10.0) <= 11
    assert asked(0.5) == 60


def test_without_a_measurement_a_second_is_asked_for() -> None:
    assert Admission(BOUNDS).retry_after_seconds(5.0) == 1


@given(st.lists(st.floats(0, 1e6), max_size=100), st.floats(0, 1e6))
def test_retry_after_is_bounded(ends: list[float], later: float) -> None:
    admission = Admission(BOUNDS)
    for end in sorted(ends):
        admission.begin(1)
        admission.end(1, end)
    assert 1 <= admission.retry_after_seconds(max(ends, default=0) + later) <= 60
