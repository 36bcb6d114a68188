"""`phimoe scale`: change the number of expert actors of a running service."""

from __future__ import annotations

import argparse

from cluster.commands.operate import add_common_flags, operate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe scale`."""
    parser.add_argument(
        "--expert-actors", type=int, required=True, metavar="N", help="how many there are to be"
    )
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status as `operate` says."""
    return operate(args, "scale", {"expert_actors": args.expert_actors})
