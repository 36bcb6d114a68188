"""`phimoe restart`: restart all actors of a running service one by one, without a failed request."""

from __future__ import annotations

import argparse

from cluster.commands.operate import add_common_flags, operate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phimoe restart`."""
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status as `operate` says."""
    return operate(args, "restart", {})
