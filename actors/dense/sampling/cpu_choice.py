"""The choice of each row's token on a CPU, by the project's kernels or by torch: the most likely token, or
one drawn at random.

Legend: B rows, V vocabulary.

The filters min_p, top_k and top_p apply one after the other. Each keeps a leading part of the remaining
tokens, sorted by falling probability. The draw inverts the cumulated probabilities in order of token id. A
row's token depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from actors.dense.sampling.philox import uniform
from actors.dense.scheduling.sequence import Sequence
from actors.kernels.library import load
from actors.kernels.threads import num_threads
from actors.protocol.messages import SamplingParams

Choose: TypeAlias = Callable[[torch.Tensor, list[Sequence]], list[int]]
"""(scores [B, V] float32, the sequences whose next tokens these are for) -> token ids [B]."""

_NUM_CANDIDATES = 1024
"""Number of most likely tokens that are enough for nearly every top_p. The whole row is sorted only if they
are not."""


def make_choose() -> Choose:
    """The choice by kernels if they are available, otherwise by torch."""
    return choose_by_torch if load() is None else choose_by_kernels


def choose_by_kernels(scores: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """Choose by the kernels, which must be available. A score that is NaN is chosen only if all are."""
    kernels = load()
    assert kernels is not None
    scores = scores.contiguous()
    drawn_by = torch.tensor([filters(sequence) for sequence in sequences], dtype=torch.float64)
    token_ids = torch.empty(len(sequences), dtype=torch.int64)
    if kernels.sample(
        scores.data_ptr(), drawn_by.data_ptr(), token_ids.data_ptr(), *scores.shape, num_threads()
    ):
        raise MemoryError(f"no memory for the choice among {scores.shape[1]} tokens")
    chosen: list[int] = token_ids.tolist()
    return chosen


def filters(sequence: Sequence) -> tuple[float, float, float, float, float]:
    """The filters and the random number of a row, in the order in which the kernel reads them."""
    params = sequence.params
    is_random = params.temperature > 0
    draw = uniform(params.seed, sequence.num_tokens) if is_random else 0.0
    return params.temperature, max(params.top_k, 0), params.top_p, params.min_p, draw


def choose_by_torch(scores: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    token_ids: list[int] = scores.argmax(dim=-1).tolist()
    for row, sequence in enumerate(sequences):
        if sequence.params.temperature > 0:
            draw = uniform(sequence.params.seed, sequence.num_tokens)
            token_ids[row] = _draw(scores[row], sequence.params, draw)
    return token_ids


def _draw(row: torch.Tensor, params: SamplingParams, draw: float) -> int:
    """The token whose share of the cumulated probability [0, 1) contains `draw`."""
    probabilities = _filter(torch.softmax(row / params.temperature, dim=-1), params)
    cumulated = probabilities.double().cumsum(dim=-1)
    index = int(torch.searchsorted(cumulated, draw * cumulated[-1], right=True))
    if index < len(row) and probabilities[index] > 0:
        return index
    return int(probabilities.argmax())  # Rounding at the upper end may leave no token.


def _filter(probabilities: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Probabilities [V] with those outside min_p, then top_k, then top_p set to 0; not renormalised."""
    kept = probabilities
    if params.min_p > 0:
        kept = kept.where(kept >= params.min_p * kept.max(), 0)
    if 0 < params.top_k < len(kept):
        kept = _only(kept, kept.topk(params.top_k).indices)
    if params.top_p < 1:
        # The most likely token always stays.
        enough = (params.top_p * kept.sum()).clamp_min(torch.finfo(kept.dtype).tiny)
        best, token_ids = kept.topk(min(_NUM_CANDIDATES, len(kept)))
        if best.sum() < enough:
            best, token_ids = kept.sort(descending=True, stable=True)
        likelier = best.cumsum(dim=-1) - best
        kept = _only(kept, token_ids[likelier < enough])
    return kept


def _only(probabilities: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(probabilities).index_copy_(0, token_ids, probabilities[token_ids])
