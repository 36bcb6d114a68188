"""Sends the same load to several servers in turn: A B A B ...

Machines are noisy and drift, so servers are compared within a round: a ratio is the first server's figure
divided by the other's of the same round. The result is the median of the ratios of all rounds. Everything but
`alternate` is pure.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.commands.bench.decode import DecodeRate
from cluster.commands.bench.figures import Figures
from cluster.commands.bench.prefix import PrefixTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measurement of one server."""

    url: str
    model: str
    num_errors: int
    headline: Mapping[str, float]
    """The compared figures by name; the name has the unit."""
    detail: Figures | PrefixTimes | tuple[DecodeRate, ...]
    """All figures of the measurement, for the JSON file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One headline figure of the first server, compared with that of another server."""

    name: str
    url: str
    """URL of the other server."""
    first_values: tuple[float, ...]
    other_values: tuple[float, ...]
    ratios: tuple[float, ...]
    """The ratio first / other of each round."""
    median_ratio: float


async def alternate(
    urls: Sequence[str], rounds: int, measure: Callable[[str, int], Awaitable[Measurement]]
) -> list[list[Measurement]]:
    """Measure every server once per round, one after the other. `measure` takes the URL and the number of the
    round."""
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, expected at least 1")
    return [[await measure(url, index) for url in urls] for index in range(rounds)]


def compare(rounds: Sequence[Sequence[Measurement]]) -> list[Comparison]:
    """Compare the first server of each round with each other server, figure by figure.

    A figure that is missing or not positive on either side in some round is left out: it has no ratio.
    """
    comparisons = []
    for position in range(1, len(rounds[0])):
        for name in rounds[0][0].headline:
            first = tuple(measured[0].headline.get(name, 0.0) for measured in rounds)
            other = tuple(measured[position].headline.get(name, 0.0) for measured in rounds)
            if min(first + other) <= 0:
                continue
            ratios = tuple(a / b for a, b in zip(first, other, strict=True))
            comparisons.append(
                Comparison(
                    name=name,
                    url=rounds[0][position].url,
                    first_values=first,
                    other_values=other,
                    ratios=ratios,
                    median_ratio=statistics.median(ratios),
                )
            )
    return comparisons


def from_figures(url: str, model: str, figures: Figures) -> Measurement:
    """The figures of a load in a form that can be compared."""
    headline = {
        "requests/s": figures.requests_per_second,
        "output tokens/s": figures.output_tokens_per_second,
    }
    for name, latency in (
        ("time to first token", figures.time_to_first_token_seconds),
        ("inter-token latency", figures.inter_token_latency_seconds),
        ("end to end", figures.end_to_end_seconds),
    ):
        if latency is not None:
            headline |= {f"{name}, p50 (s)": latency.p50, f"{name}, p99 (s)": latency.p99}
    return Measurement(url=url, model=model, num_errors=figures.num_errors, headline=headline, detail=figures)


def from_rates(url: str, model: str, rates: Sequence[DecodeRate]) -> Measurement:
    """Decode rates in a form that can be compared."""
    return Measurement(
        url=url,
        model=model,
        num_errors=0,
        headline={f"decode tokens/s, batch {rate.batch}": rate.decode_tokens_per_second for rate in rates},
        detail=tuple(rates),
    )


def from_times(url: str, model: str, times: PrefixTimes) -> Measurement:
    """Times to the first token in a form that can be compared."""
    headline = {
        "time to first token, new prefix (s)": times.first_seconds,
        "time to first token, known prefix (s)": times.second_seconds,
    }
    return Measurement(url=url, model=model, num_errors=0, headline=headline, detail=times)
