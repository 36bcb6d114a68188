"""From logits to tokens on a device: what `sampler.py` does row by row, for all rows at once. The host waits
once.

Legend: B rows, R rows that draw at random, N rows that report log-probabilities, V vocabulary.

All results come to the host in one tensor: the token ids or, if log-probabilities are reported, everything as
float64, which holds ids, ranks and float32 values exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from actors.dense.sampling.cpu_choice import make_choose
from actors.dense.sampling.philox import uniform
from actors.dense.sampling.sampler import Sample, adjust, sample
from actors.dense.scheduling.sequence import Sequence
from actors.gpu.host_to_device import to_device
from actors.protocol.messages import TokenLogprobs


def make_sampler(
    device: torch.device,
) -> Callable[[torch.Tensor, list[Sequence], tuple[int, ...]], list[Sample]]:
    """`sampler.sample` for logits on this device."""
    return partial(sample, make_choose()) if device.type == "cpu" else sample_on_device


@torch.inference_mode()
def sample_on_device(
    logits: torch.Tensor, sequences: list[Sequence], eos_token_ids: tuple[int, ...]
) -> list[Sample]:
    """Do what `sampler.sample` does, on the logits' device."""
    adjusted = adjust(logits, sequences, eos_token_ids)
    token_ids = adjusted.argmax(dim=-1)
    drawing = [row for row, sequence in enumerate(sequences) if sequence.params.temperature > 0]
    if drawing:
        rows = to_device(torch.tensor(drawing), logits.device)
        drawn = _draw(adjusted.index_select(0, rows), [sequences[row] for row in drawing])
        token_ids = token_ids.index_copy(0, rows, drawn)
    reporting = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
    # Both ways wait for the device once per step, because the sampled tokens decide what the next step
    # computes.
    if not reporting:
        return [Sample(token_id, None) for token_id in token_ids.tolist()]
    rows = to_device(torch.tensor(reporting), logits.device)
    num_top = min(max(sequences[row].params.logprobs or 0 for row in reporting), logits.shape[-1])
    parts = [token_ids, *_report(logits.index_select(0, rows), token_ids.index_select(0, rows), num_top)]
    numbers: list[float] = torch.cat([part.double().flatten() for part in parts]).tolist()
    return _collect(numbers, sequences, reporting, num_top)


def _draw(scores: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    """The tokens [R] int64 whose shares of the cumulated probabilities contain the rows' random numbers."""
    params = [sequence.params for sequence in sequences]
    draws = [uniform(sequence.params.seed, sequence.num_tokens) for sequence in sequences]
    vocabulary = scores.shape[1]
    settings = to_device(
        torch.tensor(
            [
                [one.temperature for one in params],
                [one.min_p for one in params],
                [one.top_p for one in params],
                [one.top_k if one.top_k > 0 else vocabulary for one in params],
                draws,
            ],
            dtype=torch.float64,
        ),
        scores.device,
    )
    temperature, min_p, top_p, top_k = settings[:4].float()[:, :, None]
    probabilities = torch.softmax(scores / temperature, dim=-1)
    if any(one.min_p > 0 for one in params):
        least = min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.where(probabilities >= least, 0)
    if any(one.top_p < 1 or 0 < one.top_k < vocabulary for one in params):
        probabilities = _only_best(probabilities, top_k, top_p)
    cumulated = probabilities.double().cumsum(dim=-1)
    places = torch.searchsorted(cumulated, settings[4][:, None] * cumulated[:, -1:], right=True)
    inside = places.clamp_max(vocabulary - 1)
    is_drawn = (places < vocabulary) & (probabilities.gather(1, inside) > 0)
    # Rounding at the upper end may leave no token.
    return torch.where(is_drawn, inside, probabilities.argmax(dim=-1, keepdim=True))[:, 0]


def _only_best(probabilities: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Probabilities [R, V] with those outside top_k [R, 1], then top_p [R, 1], set to 0."""
    best, token_ids = probabilities.sort(dim=-1, descending=True, stable=True)
    best = best.where(torch.arange(best.shape[1], device=best.device) < top_k, 0)
    likelier = best.double().cumsum(dim=-1) - best
    # The most likely token always stays.
    enough = (top_p * best.sum(dim=-1, keepdim=True)).clamp_min(torch.finfo(best.dtype).tiny)
    is_kept = (likelier < enough) | (top_p >= 1)
    return torch.zeros_like(best).scatter_(1, token_ids, best.where(is_kept, 0))


def _report(logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> list[torch.Tensor]:
    """Log-probabilities [N, 1] and ranks [N] of the tokens [N], then ids and log-probabilities of the most
    likely tokens, [N, num_top] each."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(-1, token_ids[:, None])
    top = logprobs.topk(num_top, dim=-1)
    return [chosen, (logprobs > chosen).sum(dim=-1) + 1, top.indices, top.values]


def _collect(
    numbers: list[float], sequences: list[Sequence], reporting: list[int], num_top: int
) -> list[Sample]:
    """The samples of all rows. numbers: the token ids, then the parts of `_report`, one after the other."""
    num_rows, num_reports = len(sequences), len(reporting)
    token_ids = [int(number) for number in numbers[:num_rows]]
    reports: list[TokenLogprobs | None] = [None] * num_rows
    chosen = num_rows
    ranks, top_ids = chosen + num_reports, chosen + 2 * num_reports
    top_logprobs = top_ids + num_reports * num_top
    for place, row in enumerate(reporting):
        wanted = min(sequences[row].params.logprobs or 0, num_top)
        span = slice(place * num_top, place * num_top + wanted)
        reports[row] = TokenLogprobs(
            token_id=token_ids[row],
            logprob=numbers[chosen + place],
            rank=int(numbers[ranks + place]),
            top=[
                (int(token_id), logprob)
                for token_id, logprob in zip(
                    numbers[top_ids:top_logprobs][span], numbers[top_logprobs:][span], strict=True
                )
            ],
        )
    return [Sample(token_id, report) for token_id, report in zip(token_ids, reports, strict=True)]
