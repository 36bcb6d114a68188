"""The flags of `phimoe bench`, and the plan that they make."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cluster.commands.bench.client import Target
from cluster.commands.bench.decode import DecodePlan
from cluster.commands.bench.load import LoadPlan
from cluster.commands.bench.prefix import PrefixPlan
from cluster.commands.bench.workload import LAST_TOKEN_ID, RandomCalls, parse_span, read_dataset
from cluster.commands.client_options import DEFAULT_URL, add_trust_flags, service_url

DEFAULT_VOCAB = LAST_TOKEN_ID + 1

What: TypeAlias = LoadPlan | DecodePlan | PrefixPlan
"""What is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What a command line asks for."""

    urls: tuple[str, ...]
    target: Target
    """The server of the first URL; its model is "" until it is known."""
    what: What
    rounds: int
    is_comparison: bool


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare all flags of `phimoe bench`."""
    parser.description = (
        "Measure a server that speaks the OpenAI protocol. `compare` with several --url sends the same load "
        "to all in turn, A B A B, and shows the ratios. The exit status is 1 if a request failed."
    )
    parser.add_argument("mode", nargs="?", choices=("compare",), help="compare several servers")
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help=f"server, without /v1 (default: the one that runs here, else {DEFAULT_URL})",
    )
    parser.add_argument("--model", help="model to ask for (default: the first of /v1/models)")
    add_trust_flags(parser)
    parser.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    parser.add_argument("--wide", action="store_true", help="show each round of compare beside the medians")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of compare (default: 3)")
    parser.add_argument("--seed", type=int, default=1, help="seed of prompts and arrivals (default: 1)")
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
        "--warmup",
        type=int,
        default=2,
        metavar="N",
        help="requests before the load, not measured (default: 2)",
    )


def _add_request(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompt-tokens",
        default="64",
        metavar="N|LOW-HIGH",
        help="fitted to the server's context (default: 64)",
    )
    group.add_argument(
        "--output-tokens",
        default="32",
        metavar="N|LOW-HIGH",
        help="fitted to the server's context (default: 32)",
    )
    group.add_argument(
        "--vocab",
        type=int,
        metavar="N",
        help="ids of random prompts are below N (default: what the server reports, else 4001)",
    )
    group.add_argument(
        "--phrase-tokens",
        type=int,
        metavar="N",
        help="random prompts repeat the same N tokens (default: they repeat nothing)",
    )
    group.add_argument(
        "--dataset", type=Path, metavar="FILE", help="JSONL with prompt or messages in each line"
    )
    group.add_argument("--temperature", type=float, default=0.0, help="(default: 0)")
    group.add_argument("--extra-body", default="{}", metavar="JSON", help="further fields of each request")
    group.add_argument("--no-ignore-eos", action="store_true", help="let answers end by themselves")
    group.add_argument(
        "--no-stream",
        action="store_true",
        help="ask for whole answers; there are no latencies of single tokens",
    )


def bench_plan(args: argparse.Namespace) -> BenchPlan:
    """Raises ValueError that names the flag, and SeveralServicesError."""
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
    return BenchPlan(urls=urls, target=target, what=what, rounds=args.rounds, is_comparison=is_comparison)


def _what(args: argparse.Namespace) -> What:
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
        vocab=DEFAULT_VOCAB if args.vocab is None else args.vocab,
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
        vocab=DEFAULT_VOCAB if args.vocab is None else args.vocab,
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
        vocab=DEFAULT_VOCAB if args.vocab is None else args.vocab,
        seed=args.seed,
    )


def _single(text: str, name: str) -> int:
    span = parse_span(text)
    if span.low != span.high:
        raise ValueError(f"{name} is {text!r}, expected one number with decode-batch or shared-prefix-tokens")
    return span.low
