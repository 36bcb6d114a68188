"""The command line: `phimoe COMMAND`, which is the same as `python -m cluster COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from cluster.supervisor.operations.messages import OPERATIONS

COMMANDS = {
    "serve": ("cluster.commands.serve", "start the service, on a local Ray or on the one at --address"),
    "chat": ("cluster.commands.chat", "talk to a running service"),
    "status": ("cluster.commands.status", "show all actors of a running service"),
    **{
        operation.name(): ("cluster.commands.operations", operation.summary().lower())
        for operation in OPERATIONS
    },
    "stop": ("cluster.commands.stop", "stop a running service"),
    "bench": ("cluster.commands.bench.command", "measure an OpenAI-compatible service"),
    "plan": ("cluster.commands.plan.command", "recommend actors and batch for a model, hardware and load"),
    "make-checkpoint": (
        "cluster.commands.make_checkpoint",
        "write a checkpoint directory with random or quantized weights",
    ),
}
"""Maps each command to its module, with `add_arguments(parser)` and `run(args) -> exit status`, and its
summary."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Only the module of that command is imported."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        name = arguments[0]
        module_name, summary = COMMANDS[name]
        module = importlib.import_module(module_name)
        parser = argparse.ArgumentParser(prog=f"phimoe {name}", description=summary, allow_abbrev=False)
        parser.set_defaults(command=name)
        module.add_arguments(parser)
        status: int = module.run(parser.parse_args(arguments[1:]))
        return status
    listing = "\n".join(f"  {name:<17}{summary}" for name, (_, summary) in COMMANDS.items())
    overview = argparse.ArgumentParser(
        prog="phimoe",
        description="Serve PhiMoE on a Ray cluster.",
        epilog=f"commands:\n{listing}\n\nphimoe COMMAND --help describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    overview.add_argument("command", choices=list(COMMANDS), metavar="COMMAND")
    overview.parse_args(arguments)
    return 2


if __name__ == "__main__":
    sys.exit(main())
