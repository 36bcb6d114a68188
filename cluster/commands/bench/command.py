"""`phimoe bench [compare]`: flags -> plan -> tables and JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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
from cluster.commands.bench.prefix import PrefixPlan, PrefixTimes, prefix_times
from cluster.commands.bench.view import show_comparisons, show_figures, show_rates, show_times
from cluster.commands.bench.workload import LAST_TOKEN_ID, RandomCalls, parse_span, read_dataset
from cluster.commands.client_options import (
    DEFAULT_URL,
    add_trust_flags,
    api_headers,
    service_url,
    verification,
)
from cluster.commands.http_client import open_client
from cluster.commands.served_model import ServerError, ask_served_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe bench`."""
    parser.description = (
        "Measure a server that speaks the OpenAI protocol. With `compare` and several --url: the same load in turn "
        "A B A B, and the ratios of each pair. Exit status 1 when a request failed."
    )
    parser.add_argument("mode", nargs="?", choices=("compare",), help="set several servers side by side")
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help=f"server, without /v1 (default: the one that runs here, else {DEFAULT_URL})",
    )
    parser.add_argument("--model", help="model to ask for (default: the first of /v1/models)")
    add_trust_flags(parser)
    parser.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of compare (default: 3)")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and arrivals (default: 1)")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="longest silence of a server"
    )
    _add_load(parser.add_argument_group("load"))
    _add_request(parser.add_argument_group("requests"))
    decode = parser.add_argument_group("decode rate")
    decode.add_argument(
        "--decode-batch",
        metavar="SIZES",
        help="measure batch * new / (time for new + 1 tokens - time for 1 token) for sizes such as 1,4,16,32",
    )
    decode.add_argument(
        "--repeat", type=int, default=3, help="measurements per batch size, or pairs of prompts (default: 3)"
    )
    prefix = parser.add_argument_group("prefix cache")
    prefix.add_argument(
        "--shared-prefix-tokens",
        type=int,
        metavar="N",
        help="measure the time to the first token of pairs of prompts that begin with the same N tokens",
    )


def _add_load(group: argparse._ArgumentGroup) -> None:
    pace = group.add_mutually_exclusive_group()
    pace.add_argument(
        "--concurrency", type=int, metavar="N", help="requests under way at a time (default: 1)"
    )
    pace.add_argument("--rate", type=float, metavar="R", help="Poisson arrivals per second instead")
    group.add_argument("--num-requests", type=int, default=32, metavar="N", help="(default: 32)")
    group.add_argument(
        "--warmup", type=int, default=2, metavar="N", help="requests before, unmeasured (default: 2)"
    )


def _add_request(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--prompt-tokens", default="64", metavar="N|LOW-HIGH", help="(default: 64)")
    group.add_argument("--output-tokens", default="32", metavar="N|LOW-HIGH", help="(default: 32)")
    group.add_argument(
        "--vocab",
        type=int,
        default=LAST_TOKEN_ID + 1,
        help="random prompts hold no id from here on (default: 4001)",
    )
    group.add_argument(
        "--phrase-tokens",
        type=int,
        metavar="N",
        help="random prompts that say the same N tokens over and over (default: they repeat nothing)",
    )
    group.add_argument(
        "--dataset", type=Path, metavar="FILE", help="JSONL with prompt or messages in each line"
    )
    group.add_argument("--temperature", type=float, default=0.0, help="(default: 0)")
    group.add_argument("--extra-body", default="{}", metavar="JSON", help="further fields of each request")
    group.add_argument("--no-ignore-eos", action="store_true", help="let answers end by themselves")
    group.add_argument(
        "--no-stream", action="store_true", help="whole answers: no latencies of single tokens"
    )


_What: TypeAlias = LoadPlan | DecodePlan | PrefixPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    urls: tuple[str, ...]
    target: Target
    """Of the first URL; model "" until it is known."""
    what: _What
    rounds: int
    is_comparison: bool


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 all answered, 1 a request failed, 2 the flags or the server make no sense, 130 interrupted."""
    errors = Console(stderr=True)
    try:
        plan = _plan(args)
        rounds = asyncio.run(_measure_all(plan, args, errors))
        _report(plan, rounds, args.json)
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


def _plan(args: argparse.Namespace) -> _Plan:
    is_comparison, given = args.mode == "compare", args.url or []
    if is_comparison and len(given) < 2:
        raise ValueError("compare needs --url at least twice")
    if not is_comparison and len(given) > 1:
        raise ValueError("several --url need the word compare: phimoe bench compare --url A --url B")
    extra_body = json.loads(args.extra_body)
    if not isinstance(extra_body, dict):
        raise ValueError(f"extra-body is {args.extra_body!r}, expected a JSON object")
    what = _what(args)
    urls = tuple(service_url(url) for url in given or [None])
    target = Target(
        url=urls[0],
        model=args.model or "",
        endpoint=args.endpoint,
        is_streamed=not args.no_stream,
        is_eos_ignored=not args.no_ignore_eos,
        temperature=args.temperature,
        extra_body=extra_body,
    )
    return _Plan(urls=urls, target=target, what=what, rounds=args.rounds, is_comparison=is_comparison)


def _what(args: argparse.Namespace) -> _What:
    if args.decode_batch is None and args.shared_prefix_tokens is None:
        return _load_plan(args)
    name = "decode-batch" if args.decode_batch is not None else "shared-prefix-tokens"
    if args.decode_batch is not None and args.shared_prefix_tokens is not None:
        raise ValueError("decode-batch does not go with shared-prefix-tokens")
    if (
        args.dataset is not None
        or args.rate is not None
        or args.concurrency is not None
        or args.no_ignore_eos
    ):
        raise ValueError(f"{name} goes with neither dataset, rate, concurrency nor no-ignore-eos")
    return _decode_plan(args) if args.decode_batch is not None else _prefix_plan(args)


def _load_plan(args: argparse.Namespace) -> LoadPlan:
    prompt, output = parse_span(args.prompt_tokens), parse_span(args.output_tokens)
    random_calls = RandomCalls(
        endpoint=args.endpoint,
        prompt_tokens=prompt,
        output_tokens=output,
        vocab=args.vocab,
        phrase_tokens=args.phrase_tokens,
    )
    return LoadPlan(
        calls=random_calls
        if args.dataset is None
        else tuple(read_dataset(args.dataset, args.endpoint, output, args.seed)),
        num_requests=args.num_requests,
        concurrency=(1 if args.concurrency is None else args.concurrency) if args.rate is None else None,
        rate=args.rate,
        num_warmup=args.warmup,
        seed=args.seed,
    )


def _decode_plan(args: argparse.Namespace) -> DecodePlan:
    sizes = args.decode_batch.split(",")
    if not all(size.strip().isdecimal() for size in sizes):
        raise ValueError(f"decode-batch is {args.decode_batch!r}, expected sizes such as 1,4,16,32")
    return DecodePlan(
        batches=tuple(int(size) for size in sizes),
        prompt_tokens=_single(args.prompt_tokens, "prompt-tokens"),
        new_tokens=_single(args.output_tokens, "output-tokens"),
        repeat=args.repeat,
        vocab=args.vocab,
        seed=args.seed,
        phrase_tokens=args.phrase_tokens,
    )


def _prefix_plan(args: argparse.Namespace) -> PrefixPlan:
    if args.no_stream:
        raise ValueError("shared-prefix-tokens does not go with no-stream")
    return PrefixPlan(
        shared_tokens=args.shared_prefix_tokens,
        own_tokens=_single(args.prompt_tokens, "prompt-tokens"),
        new_tokens=_single(args.output_tokens, "output-tokens"),
        repeat=args.repeat,
        vocab=args.vocab,
        seed=args.seed,
    )


def _single(text: str, name: str) -> int:
    span = parse_span(text)
    if span.low != span.high:
        raise ValueError(f"{name} is {text!r}, expected one number with decode-batch or shared-prefix-tokens")
    return span.low


async def _measure_all(plan: _Plan, args: argparse.Namespace, errors: Console) -> list[list[Measurement]]:
    headers, verify = api_headers(args.api_key_file), verification(args.ca_file)
    async with open_client(
        headers, verify, read_seconds=args.timeout, connect_seconds=args.timeout
    ) as client:
        models = {url: args.model or (await ask_served_model(client, url)).name for url in plan.urls}
        with _progress(errors) as progress:

            async def measure(url: str, round_index: int) -> Measurement:
                target = replace(plan.target, url=url, model=models[url])
                return await _measure(client, target, plan.what, round_index, progress)

            rounds = plan.rounds if plan.is_comparison else 1
            return await alternate(plan.urls, rounds, measure)


async def _measure(
    client: aiohttp.ClientSession,
    target: Target,
    what: _What,
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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Two draws a second: the client shares its cores with the server that it measures.
    return Progress(*columns, console=console, refresh_per_second=2, disable=not console.is_terminal)


def _report(plan: _Plan, rounds: list[list[Measurement]], path: Path | None) -> None:
    console = Console()
    for measured in (measured for measurements in rounds for measured in measurements):
        title = f"{measured.url} ({measured.model})"
        if isinstance(measured.detail, Figures):
            show_figures(console, title, measured.detail)
        elif isinstance(measured.detail, PrefixTimes):
            show_times(console, title, measured.detail)
        else:
            show_rates(console, title, measured.detail)
    comparisons = compare(rounds)
    show_comparisons(console, plan.urls[0], comparisons)
    if path is not None:
        content = {
            "plan": _plan_as_json(plan),
            "rounds": [[_as_json(measured) for measured in measurements] for measurements in rounds],
            "comparisons": [asdict(comparison) for comparison in comparisons],
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _plan_as_json(plan: _Plan) -> dict[str, Any]:
    what = plan.what
    content = asdict(what)
    if isinstance(what, LoadPlan) and not isinstance(what.calls, RandomCalls):
        content["calls"] = {"dataset": len(what.calls)}  # their texts stay in the dataset
    return {"endpoint": plan.target.endpoint, "is_streamed": plan.target.is_streamed, **content}


def _as_json(measured: Measurement) -> dict[str, Any]:
    content = {"url": measured.url, "model": measured.model}
    if isinstance(measured.detail, Figures):
        return {**content, "load": asdict(measured.detail)}
    if isinstance(measured.detail, PrefixTimes):
        return {**content, "prefix": asdict(measured.detail)}
    return {**content, "decode": [asdict(rate) for rate in measured.detail]}
