"""`phimoe rebalance`: place the experts of a running service anew, by the load that was measured."""

from __future__ import annotations

import argparse

from cluster.commands.operate import add_common_flags, operate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe rebalance`."""
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status as `operate` says."""
    return operate(args, "rebalance", {})
