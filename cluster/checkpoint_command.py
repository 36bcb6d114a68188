"""`phimoe make-checkpoint`: a checkpoint directory with random weights, for benchmarks and tests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from actors.checkpoint.presets import PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `phimoe make-checkpoint`."""
    parser.add_argument("preset", choices=PRESETS, help="shapes of the model")
    parser.add_argument("directory", type=Path, help="where to write; must be empty or not exist")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 when the directory is complete, 1 when it cannot be written."""
    # Imported here: only this command makes tensors, and it does so in the actors' code.
    from actors.checkpoint.dummy import write_checkpoint

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(f"writing {args.preset}", total=None)
        try:
            write_checkpoint(
                args.preset,
                args.directory,
                lambda done, total: bar.update(task, completed=done, total=total),
                seed=args.seed,
            )
        except OSError as error:
            print(f"phimoe make-checkpoint: {error}", file=sys.stderr)
            return 1
    print(args.directory)
    return 0
