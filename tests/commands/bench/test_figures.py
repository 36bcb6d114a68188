from __future__ import annotations

import pytest

from cluster.commands.bench.client import Mark, Outcome
from cluster.commands.bench.compare import Measurement, compare
from cluster.commands.bench.figures import (
    count_errors,
    latency,
    steady_rate,
    summarise,
    time_per_output_token,
    token_gaps,
)


def _outcome(
    sent: float, *marks: tuple[float, int], error: str | None = None, max_tokens: int = 4
) -> Outcome:
    ended = marks[-1][0] if marks else sent + 1
    return Outcome(
        sent_seconds=sent,
        ended_seconds=ended,
        max_tokens=max_tokens,
        marks=tuple(Mark(*mark) for mark in marks),
        num_prompt_tokens=10,
        num_output_tokens=marks[-1][1] if marks else 0,
        is_exact=True,
        error=error,
    )


def test_figures_of_two_calls_are_what_a_reader_computes_by_hand() -> None:
    a = _outcome(0.0, (0.5, 1), (0.6, 2), (0.7, 3), (0.9, 4))
    b = _outcome(1.0, (1.1, 1), (1.5, 3), (2.0, 4))
    figures = summarise([a, b])
    assert figures.duration_seconds == pytest.approx(2.0)
    assert figures.requests_per_second == pytest.approx(1.0)
    assert figures.output_tokens_per_second == pytest.approx(4.0)
    assert figures.total_tokens_per_second == pytest.approx(14.0)
    assert figures.time_to_first_token_seconds is not None
    assert figures.time_to_first_token_seconds.mean == pytest.approx(0.3)
    assert figures.end_to_end_seconds is not None
    assert figures.end_to_end_seconds.max == pytest.approx(1.0)
    assert figures.inter_token_latency_seconds is not None
    assert figures.inter_token_latency_seconds.count == 6
    assert (figures.num_errors, figures.num_short, figures.is_exact) == (0, 0, True)


def test_tokens_of_one_chunk_share_the_time_since_the_chunk_before() -> None:
    assert token_gaps(_outcome(0, (1.0, 2), (1.9, 5), (2.0, 6))) == pytest.approx([0.3, 0.3, 0.3, 0.1])
    assert time_per_output_token(_outcome(0, (1.0, 2), (1.9, 5), (2.0, 6))) == pytest.approx([0.25])
    assert time_per_output_token(_outcome(0, (1.0, 2))) == []


def test_failed_calls_count_as_errors_and_nowhere_else() -> None:
    figures = summarise(
        [_outcome(0, (1.0, 1)), _outcome(0, (0.1, 1), error="HTTP 500"), _outcome(0, error="HTTP 500")]
    )
    assert (figures.num_requests, figures.num_errors, figures.errors) == (3, 2, {"HTTP 500": 2})
    assert (figures.output_tokens, figures.num_short) == (1, 1)
    assert figures.time_to_first_token_seconds is not None
    assert figures.time_to_first_token_seconds.p50 == 1.0


def test_errors_that_differ_in_their_numbers_only_are_counted_once() -> None:
    texts = [
        "HTTP 400: prompt: 3000 is not below 512",
        "HTTP 500: it broke",
        "HTTP 400: prompt: 2999 is not below 512",
        "HTTP 400: it broke",
        "HTTP 400: prompt: 1 is not below 512",
        "error in the stream of cmpl-0f3a",
        "error in the stream of cmpl-12b7",
    ]
    assert count_errors(texts) == {texts[0]: 3, texts[5]: 2, texts[1]: 1, texts[3]: 1}
    assert list(count_errors(texts))[:2] == [texts[0], texts[5]]


def test_without_a_single_answer_there_are_no_latencies() -> None:
    figures = summarise([_outcome(0, error="refused")])
    assert figures.end_to_end_seconds is None and figures.time_to_first_token_seconds is None
    assert figures.output_tokens_per_second == 0
    with pytest.raises(ValueError, match="no request"):
        summarise([])


def test_percentiles_interpolate() -> None:
    values = latency([float(value) for value in range(101)])
    assert values is not None
    assert (values.p50, values.p90, values.p99, values.mean, values.max) == pytest.approx(
        (50, 90, 99, 50, 100)
    )
    single = latency([2.0])
    assert single is not None and (single.p50, single.p99) == (2.0, 2.0)


def test_steady_rate_counts_only_the_span_in_which_all_decode() -> None:
    a = _outcome(0, (1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4))
    b = _outcome(0, (2.0, 1), (3.0, 2), (4.0, 3), (5.0, 4))
    assert steady_rate([a, b]) == pytest.approx((2 + 2) / 2)
    assert steady_rate([a, _outcome(0, (9.0, 1), (10.0, 2))]) is None
    assert steady_rate([a, _outcome(0)]) is None


def test_comparison_takes_the_median_of_the_ratios_of_each_round() -> None:
    def measured(url: str, rate: float) -> Measurement:
        return Measurement(
            url=url, model="m", num_errors=0, headline={"tokens/s": rate, "zero": 0.0}, detail=()
        )

    rounds = [[measured("a", a), measured("b", b)] for a, b in ((10, 5), (30, 10), (20, 20))]
    (comparison,) = compare(rounds)
    assert (comparison.name, comparison.url) == ("tokens/s", "b")
    assert comparison.ratios == (2.0, 3.0, 1.0)
    assert comparison.median_ratio == 2.0
