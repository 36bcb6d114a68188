"""Endless training batches: conversations cut to one length.

Serving picks the rope factors by a sequence's total length, so there are two kinds of batch. A short one holds rows
of `crossing` tokens under the short factors. A long one holds longer rows under the long factors, most of them only
twice as long: rope is relative, so what differs further out is only how much there is to ignore.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from actors.checkpoint.tiny_training.questions import draw_question, draw_system
from actors.checkpoint.tiny_training.tokenizer import ChatEncoder

_LONG_STRETCHES = (2, 4, 8, 16)
_LONG_WEIGHTS = (70, 20, 7, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of one length and one regime (B sequences, L length)."""

    ids_BL: Tensor
    is_long_B: Tensor
    """Which rows use the long factors: all or none."""
    wanted_BL: Tensor
    """Positions whose next token the model must produce."""

    def targets(self) -> Tensor:
        """The tokens to produce, in the order of the wanted positions."""
        return self.ids_BL[:, 1:][self.wanted_BL[:, :-1]]


def draw_batches(rng: Random, encoder: ChatEncoder, *, crossing: int, num_tokens: int) -> Iterator[Batch]:
    """Short and long batches in turn, about `num_tokens` tokens each, at least one row."""
    while True:
        for is_long in (False, True):
            stretch = rng.choices(_LONG_STRETCHES, weights=_LONG_WEIGHTS)[0] if is_long else 1
            length = crossing * stretch
            rows = [_draw_row(rng, encoder, length) for _ in range(max(1, num_tokens // length))]
            wanted_BL = torch.tensor([wanted for _, wanted in rows]).roll(-1, dims=1)
            wanted_BL[:, -1] = False
            yield Batch(
                ids_BL=torch.tensor([ids for ids, _ in rows]),
                is_long_B=torch.full((len(rows),), is_long),
                wanted_BL=wanted_BL,
            )


def _draw_row(rng: Random, encoder: ChatEncoder, length: int) -> tuple[list[int], list[bool]]:
    """One conversation's ids and, for each, whether the model must produce it."""
    system = draw_system(rng)
    ids = [] if system is None else encoder.system(system)
    wanted = [False] * len(ids)
    while len(ids) < length:
        turn_ids, turn_wanted = encoder.turn(draw_question(rng))
        ids += turn_ids
        wanted += turn_wanted
    return ids[:length], wanted[:length]
