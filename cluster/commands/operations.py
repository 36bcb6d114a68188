"""The commands `phimoe scale`, `rebalance`, `restart` and `drain`. Each is derived from the message of its
operation."""

from __future__ import annotations

import argparse

from cluster.commands.operate import add_common_flags, operate
from cluster.ingress.admin_bodies import OPERATION_BODIES
from cluster.kinds.objects import Field
from cluster.kinds.scalars import Integer, Number
from cluster.supervisor.operations.messages import OPERATIONS

_BODIES = {operation.name(): OPERATION_BODIES[operation] for operation in OPERATIONS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each field of the operation, and the common flags.

    The parser's default for `command` names the operation.
    """
    for field in _BODIES[parser.get_default("command")].fields:
        _add_flag(parser, field)
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the operation and return the exit status of `operate`."""
    body = {field.name: getattr(args, field.name) for field in _BODIES[args.command].fields}
    return operate(args, args.command, body)


def _add_flag(parser: argparse.ArgumentParser, field: Field) -> None:
    value_type = {Integer: int, Number: float}.get(type(field.kind), str)
    help_text = field.doc[0].lower() + field.doc[1:].rstrip(".")
    parser.add_argument(
        "--" + field.name.replace("_", "-"),
        type=value_type,
        required=field.is_required,
        default=None if field.is_required else field.default,
        metavar="SECONDS" if field.name.endswith("_seconds") else "N",
        help=help_text if field.is_required else f"{help_text} (default: {field.default:g})",
    )
