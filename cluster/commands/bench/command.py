"""The command `phimoe bench [compare]`: it asks the servers what they serve, measures them and shows
tables."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from cluster.commands.bench.client import BenchError, Target
from cluster.commands.bench.compare import (
    Measurement,
    alternate,
    compare,
    from_figures,
    from_rates,
    from_times,
)
from cluster.commands.bench.decode import DecodePlan, decode_rates
from cluster.commands.bench.figures import Figures, summarise
from cluster.commands.bench.load import LoadPlan, run_load
from cluster.commands.bench.options import DEFAULT_VOCAB, BenchPlan, What, add_flags, bench_plan
from cluster.commands.bench.prefix import PrefixPlan, PrefixTimes, prefix_times
from cluster.commands.bench.view import show_comparisons, show_figures, show_rates, show_times
from cluster.commands.bench.workload import RandomCalls
from cluster.commands.client_options import api_headers, verification
from cluster.commands.http_client import open_client
from cluster.commands.served_model import ServedModel, ServerError, ask_served_model

_Rounds: TypeAlias = list[list[Measurement]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe bench`."""
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 if all requests were answered, 1 if one failed, 2 for an invalid flag or
    server, 130 if interrupted."""
    errors = Console(stderr=True)
    try:
        plan = bench_plan(args)
        plan, rounds = asyncio.run(_measure_all(plan, args, errors))
        _report(plan, rounds, is_wide=args.wide)
        if args.json is not None:
            _write(args.json, plan, rounds)
    except (BenchError, ServerError) as error:
        print(f"phimoe bench: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"phimoe bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("phimoe bench: interrupted", file=sys.stderr)
        return 130
    return 1 if any(measured.num_errors for measurements in rounds for measured in measurements) else 0


async def _measure_all(
    plan: BenchPlan, args: argparse.Namespace, errors: Console
) -> tuple[BenchPlan, _Rounds]:
    """The plan as it was carried out, and the measurements, for the JSON file."""
    headers, verify = api_headers(args.api_key_file), verification(args.ca_file)
    async with open_client(
        headers, verify, read_seconds=args.timeout, connect_seconds=args.timeout
    ) as client:
        models = {url: await ask_served_model(client, url, args.model) for url in plan.urls}
        plan = replace(plan, what=_fitted(plan.what, models.values(), args.vocab, errors))
        with _progress(errors) as progress:

            async def measure(url: str, round_index: int) -> Measurement:
                target = replace(plan.target, url=url, model=models[url].name)
                return await _measure(client, target, plan.what, round_index, progress)

            rounds = plan.rounds if plan.is_comparison else 1
            return plan, await alternate(plan.urls, rounds, measure)


def _fitted(what: What, models: Collection[ServedModel], vocab: int | None, errors: Console) -> What:
    """The plan with token ids and lengths that every model accepts. Prints a line if lengths had to
    change."""
    contexts = [model.max_model_len for model in models if model.max_model_len is not None]
    vocabs = [model.vocab_size for model in models if model.vocab_size is not None]
    context = min(contexts, default=None)
    fitted = what.fitted(min(vocabs, default=DEFAULT_VOCAB) if vocab is None else vocab, context)
    if fitted.lengths != what.lengths:
        errors.print(
            f"{what.lengths} do not fit the context of {context}: measuring with {fitted.lengths}",
            highlight=False,
            soft_wrap=True,
        )
    return fitted


async def _measure(
    client: aiohttp.ClientSession,
    target: Target,
    what: What,
    round_index: int,
    progress: Progress,
) -> Measurement:
    if isinstance(what, DecodePlan):
        task = progress.add_task(target.url, total=what.num_runs)
        shifted = replace(what, seed=what.seed + round_index * what.num_runs)
        rates = await decode_rates(client, target, shifted, lambda: progress.advance(task))
        return from_rates(target.url, target.model, rates)
    if isinstance(what, PrefixPlan):
        task = progress.add_task(target.url, total=what.num_runs)
        shifted_pairs = replace(what, seed=what.seed + round_index * what.num_runs)
        times = await prefix_times(client, target, shifted_pairs, lambda: progress.advance(task))
        return from_times(target.url, target.model, times)
    task = progress.add_task(target.url, total=what.num_requests)
    outcomes = await run_load(client, target, what, round_index, lambda _: progress.advance(task))
    return from_figures(target.url, target.model, summarise(outcomes))


def _progress(console: Console) -> Progress:
    # A long address takes a second line and is not cut.
    address = TextColumn("{task.description}", table_column=Column(overflow="fold"))
    columns = (address, BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn())
    # The view is drawn twice a second: the client shares its cores with the server that it measures.
    return Progress(*columns, console=console, refresh_per_second=2, disable=not console.is_terminal)


def _report(plan: BenchPlan, rounds: _Rounds, *, is_wide: bool) -> None:
    console = Console()
    for measured in (measured for measurements in rounds for measured in measurements):
        title = f"{measured.url} ({measured.model})"
        if isinstance(measured.detail, Figures):
            show_figures(console, title, measured.detail)
        elif isinstance(measured.detail, PrefixTimes):
            show_times(console, title, measured.detail)
        else:
            show_rates(console, title, measured.detail)
    show_comparisons(console, plan.urls[0], compare(rounds), is_wide=is_wide)


def _write(path: Path, plan: BenchPlan, rounds: _Rounds) -> None:
    content = {
        "plan": _plan_as_json(plan),
        "rounds": [[_as_json(measured) for measured in measurements] for measurements in rounds],
        "comparisons": [asdict(comparison) for comparison in compare(rounds)],
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _plan_as_json(plan: BenchPlan) -> dict[str, Any]:
    what = plan.what
    content = asdict(what)
    if isinstance(what, LoadPlan) and not isinstance(what.calls, RandomCalls):
        content["calls"] = {"dataset": len(what.calls)}  # The texts stay in the dataset.
    return {"endpoint": plan.target.endpoint, "is_streamed": plan.target.is_streamed, **content}


def _as_json(measured: Measurement) -> dict[str, Any]:
    content = {"url": measured.url, "model": measured.model}
    if isinstance(measured.detail, Figures):
        return {**content, "load": asdict(measured.detail)}
    if isinstance(measured.detail, PrefixTimes):
        return {**content, "prefix": asdict(measured.detail)}
    return {**content, "decode": [asdict(rate) for rate in measured.detail]}
