"""`phimoe drain`: let a running service finish what it has begun and begin nothing new."""

from __future__ import annotations

import argparse

from cluster.commands.operate import add_common_flags, operate
from cluster.ingress.admin_bodies import DEFAULT_GRACE_SECONDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe drain`."""
    parser.add_argument(
        "--grace-seconds",
        type=float,
        default=DEFAULT_GRACE_SECONDS,
        metavar="SECONDS",
        help=f"time for running requests, then they end with an error (default: {DEFAULT_GRACE_SECONDS:g})",
    )
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status as `operate` says."""
    return operate(args, "drain", {"grace_seconds": args.grace_seconds})
