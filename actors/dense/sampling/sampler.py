"""From logits to tokens on a CPU (`cuda_sampler.py` does the same on other devices).

Legend: B rows (sequences that sample in this step), V vocabulary.

A row's logits go through penalties, bias and minimum length, and then the choice (`cpu_choice.py`):
temperature, filters and one draw. Reported log-probabilities are those of the model, before all of these.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch

from actors.dense.sampling.cpu_choice import Choose
from actors.dense.scheduling.sequence import Sequence
from actors.gpu.host_to_device import to_device
from actors.protocol.messages import TokenLogprobs


class Sample(NamedTuple):
    """The token of a row, with log-probabilities if its sequence reports them."""

    token_id: int
    logprobs: TokenLogprobs | None


@torch.inference_mode()
def sample(
    choose: Choose, logits: torch.Tensor, sequences: list[Sequence], eos_token_ids: tuple[int, ...]
) -> list[Sample]:
    """Sample one token per row of logits [B, V] float32, for the position after each sequence's last
    token."""
    token_ids = choose(adjust(logits, sequences, eos_token_ids), sequences)
    return with_reports(logits, token_ids, sequences)


def with_reports(logits: torch.Tensor, token_ids: list[int], sequences: list[Sequence]) -> list[Sample]:
    """The samples for tokens [B] of the first B rows of logits, which may have more; with log-probabilities
    for sequences that report them."""
    reports: list[TokenLogprobs | None] = [None] * len(sequences)
    for row, sequence in enumerate(sequences):
        if sequence.params.logprobs is not None:
            reports[row] = token_logprobs(
                logits[row : row + 1], token_ids[row : row + 1], sequence.params.logprobs
            )[0]
    return [Sample(token_id, report) for token_id, report in zip(token_ids, reports, strict=True)]


@torch.inference_mode()
def token_logprobs(logits: torch.Tensor, token_ids: list[int], num_top: int) -> list[TokenLogprobs]:
    """The log-probability and rank of one token per row of logits [rows, V], and the row's `num_top` most
    likely tokens."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(-1, torch.tensor(token_ids, device=logits.device)[:, None])
    ranks = (logprobs > chosen).sum(dim=-1) + 1
    top = logprobs.topk(min(num_top, logprobs.shape[-1]), dim=-1)
    return [
        TokenLogprobs(
            token_id=token_id, logprob=logprob, rank=rank, top=list(zip(top_ids, top_logprobs, strict=True))
        )
        for token_id, logprob, rank, top_ids, top_logprobs in zip(
            token_ids,
            chosen[:, 0].tolist(),
            ranks.tolist(),
            top.indices.tolist(),
            top.values.tolist(),
            strict=True,
        )
    ]


def adjust(logits: torch.Tensor, sequences: list[Sequence], eos_token_ids: tuple[int, ...]) -> torch.Tensor:
    """Logits after penalties, bias and minimum length; the input itself if no row needs any of these."""
    rows = [row for row, sequence in enumerate(sequences) if is_adjusted(sequence)]
    if not rows:
        return logits
    adjusted = logits.clone()
    for row in rows:
        sequence = sequences[row]
        params = sequence.params
        _penalise(adjusted[row], sequence)
        if params.logit_bias:
            ids = to_device(torch.tensor(list(params.logit_bias)), logits.device)
            values = to_device(torch.tensor(list(params.logit_bias.values())), logits.device)
            adjusted[row].index_add_(0, ids, values)
        if _is_short(sequence):
            ends = torch.tensor([*eos_token_ids, *params.stop_token_ids], dtype=torch.int64)
            adjusted[row].index_fill_(0, to_device(ends, logits.device), float("-inf"))
    return adjusted


def is_adjusted(sequence: Sequence) -> bool:
    """Whether the logits of a sequence's row are changed before its token is chosen."""
    params = sequence.params
    has_penalty = params.repetition_penalty != 1.0 or params.frequency_penalty or params.presence_penalty
    return bool(has_penalty or params.logit_bias or _is_short(sequence))


def _is_short(sequence: Sequence) -> bool:
    return len(sequence.output_ids) < sequence.params.min_tokens


def _penalise(row: torch.Tensor, sequence: Sequence) -> None:
    """Apply the repetition penalty for tokens of prompt and output (Keskar et al. 2019, section 4.1), and the
    frequency and presence penalties for tokens of the output."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = to_device(torch.tensor(sorted({*sequence.prompt_ids, *sequence.output_ids})), row.device)
        scores = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    if sequence.output_ids and (params.frequency_penalty or params.presence_penalty):
        times = Counter(sequence.output_ids)
        seen = to_device(torch.tensor(list(times)), row.device)
        counts = to_device(torch.tensor(list(times.values())), row.device)
        row[seen] -= params.frequency_penalty * counts + params.presence_penalty
