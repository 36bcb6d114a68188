"""The command `phimoe make-checkpoint`: it writes a checkpoint directory.

The weights are random, for benchmarks and tests, or those of another checkpoint with its experts quantized.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from actors.checkpoint.dummy.presets import PRESETS
from actors.checkpoint.quantization import KINDS
from actors.errors import CheckpointError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `phimoe make-checkpoint`."""
    parser.add_argument(
        "model",
        help=f"{', '.join(PRESETS)} for random weights, or a checkpoint directory to quantize",
    )
    parser.add_argument("directory", type=Path, help="directory to write; it must be empty or not exist")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    parser.add_argument(
        "--expert-quantization",
        choices=tuple(KINDS),
        help="write the experts' matrices quantized, in compressed-tensors' format",
    )


def run(args: argparse.Namespace) -> int:
    """Return the exit status: 0 if the directory is complete, 1 if it cannot be written."""
    # These imports load torch, which only this command needs.
    from actors.checkpoint.dummy.dummy_reader import write_checkpoint
    from actors.checkpoint.write import quantize_checkpoint

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(f"writing {args.model}", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        quantization = args.expert_quantization
        try:
            if args.model in PRESETS:
                write_checkpoint(args.model, args.directory, show, seed=args.seed, quantization=quantization)
            elif quantization is None or not Path(args.model).is_dir():
                raise ValueError(
                    f"model is {args.model!r}, expected one of {', '.join(PRESETS)}, or, with "
                    f"--expert-quantization, a checkpoint directory"
                )
            else:
                quantize_checkpoint(args.model, args.directory, quantization, show)
        except (OSError, ValueError, CheckpointError) as error:
            print(f"phimoe make-checkpoint: {error}", file=sys.stderr)
            return 1
    print(args.directory)
    return 0
