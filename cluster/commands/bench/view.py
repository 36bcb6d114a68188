"""Shows the results of a benchmark as tables in the terminal. Times are in milliseconds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from cluster.commands.bench.compare import Comparison
from cluster.commands.bench.decode import DecodeRate
from cluster.commands.bench.figures import Figures, Latency
from cluster.commands.bench.prefix import PrefixTimes
from cluster.commands.tables import Cell, Column, show_table

_FIGURES = (Column("figure", is_number=False, is_folded=True), Column("value"))
_MAX_ERRORS = 10


def show_figures(console: Console, title: str, figures: Figures) -> None:
    """Print throughput, latencies, then errors."""
    rows = [
        ("requests answered", f"{figures.num_requests - figures.num_errors} of {figures.num_requests}"),
        ("duration (s)", f"{figures.duration_seconds:.2f}"),
        ("requests/s", f"{figures.requests_per_second:.2f}"),
        ("output tokens", str(figures.output_tokens)),
        ("output tokens/s", f"{figures.output_tokens_per_second:.1f}"),
    ]
    if figures.prompt_tokens is not None and figures.total_tokens_per_second is not None:
        rows.append(("prompt tokens", str(figures.prompt_tokens)))
        rows.append(("prompt + output tokens/s", f"{figures.total_tokens_per_second:.1f}"))
    show_table(console, title, _FIGURES, rows)
    _show_latencies(console, figures)
    if figures.num_short:
        console.print(f"[yellow]{figures.num_short} answers have fewer tokens than asked for[/]")
    if figures.time_to_first_token_seconds is not None and not figures.is_exact:
        console.print("[dim]this server does not send usage with each chunk: a chunk counted as one token[/]")
    if figures.num_errors:
        _show_errors(console, figures)


def show_rates(console: Console, title: str, rates: Sequence[DecodeRate]) -> None:
    """Print decode rates, one row per batch size."""
    names = ("batch", "decode tokens/s", "min", "max", "steady tokens/s", "prefill (ms)")
    rows = [
        (
            str(rate.batch),
            f"{rate.decode_tokens_per_second:.1f}",
            f"{rate.min:.1f}",
            f"{rate.max:.1f}",
            "-" if rate.steady_tokens_per_second is None else f"{rate.steady_tokens_per_second:.1f}",
            f"{rate.prefill_seconds * 1000:.1f}",
        )
        for rate in rates
    ]
    show_table(console, title, [Column(name) for name in names], rows)


def show_times(console: Console, title: str, times: PrefixTimes) -> None:
    """Print what a cached prefix saves."""
    rows = [
        (f"{times.shared_tokens} shared tokens, new (ms)", f"{times.first_seconds * 1000:.1f}"),
        (f"{times.shared_tokens} shared tokens, known (ms)", f"{times.second_seconds * 1000:.1f}"),
        ("ratio of each pair, median", f"{times.ratio:.2f}"),
        ("ratio, min and max", f"{times.min_ratio:.2f}, {times.max_ratio:.2f}"),
    ]
    if times.cached_tokens is not None:
        rows.append(("tokens found computed", str(times.cached_tokens)))
    columns = (Column("time to first token", is_number=False, is_folded=True), Column("value"))
    show_table(console, title, columns, rows)


def show_comparisons(
    console: Console, first_url: str, comparisons: Sequence[Comparison], *, is_wide: bool
) -> None:
    """Print the medians of both servers and of the ratios; with `is_wide` also the ratio of each round."""
    for url in dict.fromkeys(comparison.url for comparison in comparisons):
        some = [comparison for comparison in comparisons if comparison.url == url]
        names = ["first", "other", "lowest ratio", "highest ratio", "median ratio"]
        if is_wide:
            names += [f"round {index + 1}" for index in range(len(some[0].ratios))]
        columns = [Column("figure", is_number=False, is_folded=True), *map(Column, names)]
        rows = [_comparison_row(comparison)[: len(columns)] for comparison in some]
        show_table(console, f"{first_url} / {url}", columns, rows)


def _comparison_row(comparison: Comparison) -> tuple[Cell, ...]:
    rounds = zip(comparison.first_values, comparison.other_values, comparison.ratios, strict=True)
    return (
        comparison.name,
        f"{statistics.median(comparison.first_values):.4g}",
        f"{statistics.median(comparison.other_values):.4g}",
        f"{min(comparison.ratios):.3f}",
        f"{max(comparison.ratios):.3f}",
        Text(f"{comparison.median_ratio:.3f}", "bold"),
        *(f"{first:.4g} / {other:.4g} = {ratio:.3f}" for first, other, ratio in rounds),
    )


def _show_latencies(console: Console, figures: Figures) -> None:
    latencies: tuple[tuple[str, Latency | None], ...] = (
        ("time to first token", figures.time_to_first_token_seconds),
        ("inter-token latency", figures.inter_token_latency_seconds),
        ("time per output token", figures.time_per_output_token_seconds),
        ("end to end", figures.end_to_end_seconds),
    )
    rows = [
        (name, *map(_milliseconds, (latency.mean, latency.p50, latency.p90, latency.p99, latency.max)))
        for name, latency in latencies
        if latency is not None
    ]
    if rows:
        names = ("mean", "p50", "p90", "p99", "max")
        columns = [Column("latency (ms)", is_number=False, is_folded=True), *map(Column, names)]
        show_table(console, "", columns, rows)


def _milliseconds(seconds: float) -> str:
    """A number with at least four digits and no more decimal places than they need."""
    milliseconds = seconds * 1000
    return f"{milliseconds:.{2 if milliseconds < 100 else 1 if milliseconds < 1000 else 0}f}"


def _show_errors(console: Console, figures: Figures) -> None:
    """Print each kind of error once with its count, the most frequent first."""
    console.print(f"[red]{figures.num_errors} requests failed[/]")
    shown = list(figures.errors.items())[:_MAX_ERRORS]
    for text, count in shown:
        console.print(Text.assemble((f"{count} x ", "red"), text), overflow="fold")
    if len(figures.errors) > len(shown):
        console.print(f"and {len(figures.errors) - len(shown)} other kinds of error", highlight=False)
