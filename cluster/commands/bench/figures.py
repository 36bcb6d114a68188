"""Computes throughput and latencies from the outcomes of calls. Pure.

Latencies of one call that was sent at t0, whose marks are (t1, n1), ..., (tk, nk) and which ended at te:

    time to first token     t1 - t0
    inter-token latency     for each later mark, (ti - ti-1) / (ni - ni-1), counted ni - ni-1 times: the
                            tokens of a chunk share the time since the chunk before, so the mean does not
                            depend on chunks
    time per output token   (tk - t1) / (nk - n1), one figure per call
    end to end              te - t0

Percentiles interpolate linearly. Failed calls count as errors and nowhere else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cluster.commands.bench.client import Outcome

_DETAIL = re.compile(r"(?<!HTTP )\b\w*\d\w*")
"""A word with a digit in it that is not an HTTP status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The distribution of one latency, in seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of one load."""

    num_requests: int
    num_errors: int
    errors: dict[str, int]
    """The text of each kind of error and its count. Texts that differ only in their numbers are one kind."""
    num_short: int
    """Answered calls with fewer tokens than `max_tokens`. With `ignore_eos` they show that the server does
    not know it."""
    duration_seconds: float
    """Time from the start of the first call to the end of the last one."""
    prompt_tokens: int | None
    """Sum over the answered calls; None if the server does not report it."""
    output_tokens: int
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float | None
    is_exact: bool
    """Whether all tokens were counted by the server's usage in each chunk, not by the number of chunks."""
    time_to_first_token_seconds: Latency | None
    inter_token_latency_seconds: Latency | None
    time_per_output_token_seconds: Latency | None
    end_to_end_seconds: Latency | None


def summarise(outcomes: Sequence[Outcome]) -> Figures:
    """Compute the figures of one load. Raises ValueError if there are no outcomes."""
    if not outcomes:
        raise ValueError("no request was sent")
    answered = [outcome for outcome in outcomes if outcome.error is None]
    streamed = [outcome for outcome in answered if outcome.marks]
    duration = max(o.ended_seconds for o in outcomes) - min(o.sent_seconds for o in outcomes)
    output_tokens = sum(o.num_output_tokens for o in answered)
    prompts = [o.num_prompt_tokens for o in answered]
    prompt_tokens = None if None in prompts else sum(count for count in prompts if count is not None)
    per_second = 1 / duration if duration > 0 else 0.0
    return Figures(
        num_requests=len(outcomes),
        num_errors=len(outcomes) - len(answered),
        errors=count_errors([o.error for o in outcomes if o.error is not None]),
        num_short=sum(o.num_output_tokens < o.max_tokens for o in answered),
        duration_seconds=duration,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        requests_per_second=len(answered) * per_second,
        output_tokens_per_second=output_tokens * per_second,
        total_tokens_per_second=None
        if prompt_tokens is None
        else (prompt_tokens + output_tokens) * per_second,
        is_exact=bool(streamed) and all(o.is_exact for o in streamed),
        time_to_first_token_seconds=latency([o.marks[0].seconds - o.sent_seconds for o in streamed]),
        inter_token_latency_seconds=latency([gap for o in streamed for gap in token_gaps(o)]),
        time_per_output_token_seconds=latency([t for o in streamed for t in time_per_output_token(o)]),
        end_to_end_seconds=latency([o.ended_seconds - o.sent_seconds for o in answered]),
    )


def count_errors(texts: Sequence[str]) -> dict[str, int]:
    """The first text of each kind of error and the count of that kind, the most frequent first.

    Texts of one kind differ only in words with digits, such as ids and lengths, but not in their HTTP status.
    """
    kinds = [_DETAIL.sub("#", text) for text in texts]
    examples = dict(zip(reversed(kinds), reversed(texts), strict=True))
    return {examples[kind]: count for kind, count in Counter(kinds).most_common()}


def token_gaps(outcome: Outcome) -> list[float]:
    """The inter-token latencies of one call, one for each token after those of the first mark."""
    gaps: list[float] = []
    for before, after in pairwise(outcome.marks):
        count = after.num_tokens - before.num_tokens
        gaps += [(after.seconds - before.seconds) / count] * count
    return gaps


def time_per_output_token(outcome: Outcome) -> list[float]:
    """The mean time per output token of a call, or nothing for a call with a single mark."""
    if len(outcome.marks) < 2:
        return []
    first, last = outcome.marks[0], outcome.marks[-1]
    return [(last.seconds - first.seconds) / (last.num_tokens - first.num_tokens)]


def latency(seconds: Sequence[float]) -> Latency | None:
    """The distribution of these times; None if there are none."""
    if not seconds:
        return None
    values = np.asarray(seconds, dtype=np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Latency(
        count=len(seconds), mean=float(values.mean()), p50=p50, p90=p90, p99=p99, max=float(values.max())
    )


def steady_rate(outcomes: Sequence[Outcome]) -> float | None:
    """Tokens per second of calls that decode together, in the time in which all of them decode.

    Counts the tokens between the moment at which the last call has its first token and the moment at which
    the first call has its last one; None if there is no such span, or without streaming.
    """
    if not all(outcome.marks for outcome in outcomes):
        return None
    begin = max(outcome.marks[0].seconds for outcome in outcomes)
    end = min(outcome.marks[-1].seconds for outcome in outcomes)
    if end <= begin:
        return None
    tokens = sum(_tokens_by(outcome, end) - _tokens_by(outcome, begin) for outcome in outcomes)
    return tokens / (end - begin)


def _tokens_by(outcome: Outcome, seconds: float) -> int:
    return max((mark.num_tokens for mark in outcome.marks if mark.seconds <= seconds), default=0)
