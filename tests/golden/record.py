"""The golden files: for each position, the best tokens that a forward pass of another implementation gives.

A checkpoint's passes run over the first `length` of its `token_ids`, so that the same prefix is computed with
the short and with the long rope factors.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.small_checkpoints import ORIGINAL_MAX, Spec

DIRECTORY = Path(__file__).parent
NUM_TOP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One forward pass over `length` tokens. The lists have `length` entries of NUM_TOP each, best first."""

    length: int
    top_ids: list[list[int]]
    top_logprobs: list[list[float]]
    """Natural logarithms of the probabilities, rounded to six digits after the point."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """The passes over one small checkpoint."""

    name: str
    made_with: str
    weights_sha256: str
    """`small_checkpoints.checksum` of the weights that were used."""
    token_ids: list[int]
    passes: list[Pass]


def lengths(spec: Spec) -> list[int]:
    """Return the lengths of the passes: one token, fewer than the rope limit, all around it, and many
    more."""
    below, above = 5 + 3 * spec.seed % 37, 70 + 7 * spec.seed % 31
    return [1, below, ORIGINAL_MAX - 1, ORIGINAL_MAX, ORIGINAL_MAX + 1, above]


def load(name: str, directory: Path = DIRECTORY) -> Golden:
    """Read the golden file of the checkpoint called `name`."""
    values = json.loads((directory / f"{name}.json").read_text())
    return Golden(**values | {"passes": [Pass(**p) for p in values["passes"]]})


def save(golden: Golden, directory: Path) -> None:
    """Write the golden file to the place where `load` finds it."""
    text = json.dumps(asdict(golden), separators=(",", ":"))
    (directory / f"{golden.name}.json").write_text(text + "\n")
