"""The command `phimoe plan`: it reads flags, finds a plan or compares predictions, and prints tables or
JSON."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.dummy.presets import PRESETS, preset_config
from actors.errors import CheckpointError
from cluster.commands.plan.demand import Demand, NoPlanError
from cluster.commands.plan.hardware import NAMES, Hardware, hardware
from cluster.commands.plan.search import Plan, find_plan
from cluster.commands.plan.shape import Shape, model_shape
from cluster.commands.plan.step import Layout, StepCost, step_cost
from cluster.commands.plan.validate import compare, read_measured
from cluster.commands.plan.view import show_plan, show_predictions

_DEFAULT_EXPERT_ACTORS = 2
"""What `phimoe serve` starts by default. A measurement is taken with this number unless a flag says
otherwise."""
_SUFFIXES = {"G": 1e9, "T": 1e12, "P": 1e15}

_OVERRIDES = (
    ("bandwidth-gbps", "bandwidth", 1e9, "memory, GB/s"),
    ("memory-gb", "memory_bytes", 1e9, "memory of a GPU or of the host, GB"),
    ("link-gbps", "link_bandwidth", 1e9, "between actors, one direction, GB/s"),
    ("link-latency-us", "link_latency_seconds", 1e-6, "one way, microseconds"),
    ("bandwidth-efficiency", "bandwidth_efficiency", 1.0, "share of the bandwidth that a model reaches"),
    ("flops-efficiency", "flops_efficiency", 1.0, "share of the operations that a model reaches"),
    ("overlap", "overlap", 1.0, "1 if reading hides computing, 0 if one waits for the other"),
    ("layer-overhead-us", "layer_overhead_seconds", 1e-6, "per layer and part, microseconds"),
    ("step-overhead-ms", "step_overhead_seconds", 1e-3, "per step, milliseconds"),
    ("core-bandwidth-share", "core_bandwidth_share", 1.0, "share of the bandwidth that one core reaches"),
    (
        "bf16-weight-share",
        "bf16_weight_share",
        1.0,
        "bytes read per byte of bfloat16 weights",
    ),
)
"""(flag, field of Hardware, unit, help)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe plan`."""
    parser.description = (
        "Recommend actors, replicas, micro-batches and batch for a model on some hardware, by the cost model "
        "of MegaScale-Infer (arXiv 2504.02263). The exit status is 1 if no plan meets the demand."
    )
    parser.add_argument("model", help=f"checkpoint directory, or a preset: {', '.join(PRESETS)}")
    parser.add_argument("--gpu", default="h100", metavar="NAME", help=f"{', '.join(NAMES)} (default: h100)")
    parser.add_argument("--dtype", default="auto", help="(default: auto, as stored)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    load = parser.add_argument_group("load")
    load.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="(default: 512)")
    load.add_argument("--output-tokens", type=int, default=256, metavar="N", help="(default: 256)")
    load.add_argument(
        "--context", type=int, metavar="N", help="longest sequence (default: prompt plus output)"
    )
    load.add_argument(
        "--rate", type=float, metavar="R", help="requests per second (default: as many as possible)"
    )
    load.add_argument("--target-latency", metavar="TIME", help="between two tokens, such as 50ms or 0.05s")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-gpus", type=int, default=32, metavar="N", help="(default: 32)")
    limits.add_argument(
        "--max-num-sequences", type=int, default=1024, metavar="N", help="per dense actor (default: 1024)"
    )
    limits.add_argument("--max-micro-batches", type=int, default=4, metavar="N", help="(default: 4)")
    limits.add_argument("--dense-actors", type=int, metavar="N", help="plan for exactly N")
    limits.add_argument(
        "--expert-actors", type=int, metavar="N", help="plan for exactly N; 0 is --exchange local"
    )
    limits.add_argument("--expert-replicas", type=int, metavar="N", help="plan for exactly N")
    figures = parser.add_argument_group("hardware figures that replace those of --gpu")
    figures.add_argument("--flops", metavar="F", help="operations per second, such as 989T or 4.4e11")
    figures.add_argument("--cores", type=int, metavar="N", help="cores of a CPU host")
    for flag, _, _, text in _OVERRIDES:
        figures.add_argument(f"--{flag}", type=float, metavar="X", help=text)
    check = parser.add_argument_group("validation")
    check.add_argument(
        "--validate",
        type=Path,
        metavar="FILE",
        help="compare with a file of phimoe bench --decode-batch --json",
    )
    check.add_argument(
        "--tolerance",
        type=float,
        default=25.0,
        metavar="PERCENT",
        help="largest difference; beyond it the exit status is 3 (default: 25)",
    )


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0, 1 if no plan meets the demand, 2 for invalid flags, 3 for a prediction that
    is off."""
    try:
        shape = model_shape(_config(args.model), args.dtype)
        machine = _hardware(args)
        return _plan(args, shape, machine) if args.validate is None else _validate(args, shape, machine)
    except NoPlanError as error:
        print(f"phimoe plan: {error}", file=sys.stderr)
        return 1
    except (CheckpointError, ValueError, OSError) as error:
        print(f"phimoe plan: {error}", file=sys.stderr)
        return 2


def _config(model: str) -> ModelConfig:
    if model in PRESETS:
        return preset_config(model)
    if not Path(model).is_dir():
        raise ValueError(
            f"model is {model!r}, expected a checkpoint directory or one of {', '.join(PRESETS)}"
        )
    return ModelConfig.from_directory(model)


def _hardware(args: argparse.Namespace) -> Hardware:
    changes: dict[str, float | None] = {
        field: None if (value := getattr(args, flag.replace("-", "_"))) is None else value * unit
        for flag, field, unit, _ in _OVERRIDES
    }
    flops = None if args.flops is None else parse_amount(args.flops)
    return hardware(args.gpu, flops=flops, cores=args.cores, **changes)


def parse_amount(text: str) -> float:
    """Operations per second from a text such as 4.4e11, 440G, 989T or 1P. Raises ValueError."""
    digits, factor = (text[:-1], _SUFFIXES[text[-1]]) if text[-1:] in _SUFFIXES else (text, 1.0)
    try:
        return float(digits) * factor
    except ValueError:
        raise ValueError(f"flops is {text!r}, expected a number such as 989T or 4.4e11") from None


def parse_seconds(text: str) -> float:
    """Seconds from a text such as 50ms, 0.05s or 0.05. Raises ValueError."""
    digits, unit = (text[:-2], 1e-3) if text.endswith("ms") else (text.removesuffix("s"), 1.0)
    try:
        return float(digits) * unit
    except ValueError:
        raise ValueError(f"target_latency is {text!r}, expected a time such as 50ms or 0.05s") from None


def _plan(args: argparse.Namespace, shape: Shape, machine: Hardware) -> int:
    demand = Demand(
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
        context_tokens=args.prompt_tokens + args.output_tokens if args.context is None else args.context,
        target_seconds=None if args.target_latency is None else parse_seconds(args.target_latency),
        rate=args.rate,
        max_gpus=args.max_gpus,
        max_num_sequences=args.max_num_sequences,
        max_micro_batches=args.max_micro_batches,
        dense_actors=args.dense_actors,
        expert_actors=args.expert_actors,
        expert_replicas=args.expert_replicas,
    )
    plan = find_plan(shape, machine, demand)
    single = _in_one_micro_batch(shape, machine, demand, plan)
    if args.json:
        content = {
            "model": args.model,
            "hardware": asdict(machine),
            "demand": asdict(demand),
            "plan": asdict(plan),
            "step_in_one_micro_batch": None if single is None else asdict(single),
        }
        print(json.dumps(content, indent=2))
    else:
        show_plan(Console(), f"{args.model} on {machine.name}", machine, plan, single)
    return 0


def _in_one_micro_batch(shape: Shape, machine: Hardware, demand: Demand, plan: Plan) -> StepCost | None:
    if plan.layout.micro_batches == 1:
        return None
    return step_cost(shape, machine, replace(plan.layout, micro_batches=1), plan.batch, demand.seen_tokens)


def _validate(args: argparse.Namespace, shape: Shape, machine: Hardware) -> int:
    expert_actors = _DEFAULT_EXPERT_ACTORS if args.expert_actors is None else args.expert_actors
    measured = read_measured(args.validate)
    demand = Demand(  # Its constructor checks the counts.
        prompt_tokens=measured.prompt_tokens,
        output_tokens=measured.new_tokens,
        context_tokens=measured.prompt_tokens + measured.new_tokens,
        dense_actors=args.dense_actors or 1,
        expert_actors=expert_actors,
        expert_replicas=args.expert_replicas or 1,
    )
    layout = Layout(
        dense_actors=demand.dense_actors or 1,
        expert_actors=expert_actors,
        expert_replicas=demand.expert_replicas or 1,
    )
    predictions = compare(shape, machine, layout, measured)
    if args.json:
        content = {
            "model": args.model,
            "hardware": asdict(machine),
            "layout": asdict(layout),
            "predictions": [asdict(prediction) for prediction in predictions],
        }
        print(json.dumps(content, indent=2))
    else:
        title = f"{args.model} on {machine.name}, {layout.dense_actors} dense, {expert_actors} expert actors"
        show_predictions(Console(), title, predictions, args.tolerance)
    return 3 if any(abs(row.difference_percent) > args.tolerance for row in predictions) else 0
