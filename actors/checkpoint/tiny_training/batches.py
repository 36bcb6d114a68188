"""Makes endless training batches of conversations that are cut to one length.

Serving picks the rope factors by a sequence's total length, so there are two kinds of batch. A short batch
holds rows of `crossing` tokens with the short factors. A long batch holds longer rows with the long factors,
most of them only twice as long: rope is relative, so a longer row only adds more text to ignore.
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
    """Whether each row uses the long factors: true for all rows or for none."""
    wanted_BL: Tensor
    """Positions whose next token the model must produce."""

    def targets(self) -> Tensor:
        """Return the tokens that the model must produce, in the order of the wanted positions."""
        return self.ids_BL[:, 1:][self.wanted_BL[:, :-1]]


def draw_batches(rng: Random, encoder: ChatEncoder, *, crossing: int, num_tokens: int) -> Iterator[Batch]:
    """Yield short and long batches in turn, each of at least one row and about `num_tokens` tokens."""
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
    """Return one conversation's token ids and, for each, whether the model must produce it."""
    system = draw_system(rng)
    ids = [] if system is None else encoder.system(system)
    wanted = [False] * len(ids)
    while len(ids) < length:
        turn_ids, turn_wanted = encoder.turn(draw_question(rng))
        ids += turn_ids
        wanted += turn_wanted
    return ids[:length], wanted[:length]
