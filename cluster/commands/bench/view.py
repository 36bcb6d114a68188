"""What a benchmark shows: rich tables. Times are shown in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.commands.bench.compare import Comparison
from cluster.commands.bench.decode import DecodeRate
from cluster.commands.bench.figures import Figures, Latency
from cluster.commands.bench.prefix import PrefixTimes


def show_figures(console: Console, title: str, figures: Figures) -> None:
    """Throughput, latencies, then what failed."""
    table = _table(title, "figure", "value")
    table.add_row(
        "requests answered", f"{figures.num_requests - figures.num_errors} of {figures.num_requests}"
    )
    table.add_row("duration (s)", f"{figures.duration_seconds:.2f}")
    table.add_row("requests/s", f"{figures.requests_per_second:.2f}")
    table.add_row("output tokens", str(figures.output_tokens))
    table.add_row("output tokens/s", f"{figures.output_tokens_per_second:.1f}")
    if figures.prompt_tokens is not None and figures.total_tokens_per_second is not None:
        table.add_row("prompt tokens", str(figures.prompt_tokens))
        table.add_row("prompt + output tokens/s", f"{figures.total_tokens_per_second:.1f}")
    console.print(table)
    _show_latencies(console, figures)
    if figures.num_short:
        console.print(f"[yellow]{figures.num_short} answers have fewer tokens than asked for[/]")
    if figures.time_to_first_token_seconds is not None and not figures.is_exact:
        console.print("[dim]this server does not send usage with each chunk: a chunk counted as one token[/]")
    if figures.num_errors:
        console.print(f"[red]{figures.num_errors} requests failed[/]")
        for text, count in figures.errors.items():
            console.print(f"[red]{count} x[/] {escape(text)}")


def show_rates(console: Console, title: str, rates: Sequence[DecodeRate]) -> None:
    """One row per batch size."""
    table = _table(title, "batch", "decode tokens/s", "min", "max", "steady tokens/s", "prefill (ms)")
    for rate in rates:
        steady = rate.steady_tokens_per_second
        table.add_row(
            str(rate.batch),
            f"{rate.decode_tokens_per_second:.1f}",
            f"{rate.min:.1f}",
            f"{rate.max:.1f}",
            "-" if steady is None else f"{steady:.1f}",
            f"{rate.prefill_seconds * 1000:.1f}",
        )
    console.print(table)


def show_times(console: Console, title: str, times: PrefixTimes) -> None:
    """What a known prefix is worth."""
    table = _table(title, "time to first token", "value")
    table.add_row(f"{times.shared_tokens} shared tokens, new (ms)", f"{times.first_seconds * 1000:.1f}")
    table.add_row(f"{times.shared_tokens} shared tokens, known (ms)", f"{times.second_seconds * 1000:.1f}")
    table.add_row("ratio of each pair, median", f"{times.ratio:.2f}")
    table.add_row("ratio, min and max", f"{times.min_ratio:.2f}, {times.max_ratio:.2f}")
    if times.cached_tokens is not None:
        table.add_row("tokens found computed", str(times.cached_tokens))
    console.print(table)


def show_comparisons(console: Console, first_url: str, comparisons: Sequence[Comparison]) -> None:
    """Every pair's ratio, and their median."""
    for url in dict.fromkeys(comparison.url for comparison in comparisons):
        rows = [comparison for comparison in comparisons if comparison.url == url]
        rounds = [f"round {index + 1}" for index in range(len(rows[0].ratios))]
        table = _table(f"{first_url} / {url}", "figure", *rounds, "median")
        for row in rows:
            ratios = [
                f"{a:.4g} / {b:.4g} = {ratio:.3f}"
                for a, b, ratio in zip(row.first_values, row.other_values, row.ratios, strict=True)
            ]
            table.add_row(row.name, *ratios, f"[bold]{row.median_ratio:.3f}[/]")
        console.print(table)


def _show_latencies(console: Console, figures: Figures) -> None:
    table = _table("", "latency (ms)", "mean", "p50", "p90", "p99", "max")
    rows: tuple[tuple[str, Latency | None], ...] = (
        ("time to first token", figures.time_to_first_token_seconds),
        ("inter-token latency", figures.inter_token_latency_seconds),
        ("time per output token", figures.time_per_output_token_seconds),
        ("end to end", figures.end_to_end_seconds),
    )
    for name, latency in rows:
        if latency is not None:
            values = (latency.mean, latency.p50, latency.p90, latency.p99, latency.max)
            table.add_row(name, *(f"{value * 1000:.2f}" for value in values))
    if table.row_count:
        console.print(table)


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=escape(title) or None, title_justify="left", box=box.SIMPLE)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
