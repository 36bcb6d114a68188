"""One step on the model: what each sequence samples, and what is reported of prompts. The sequences are not
changed.

Legend: T rows of the step, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch

from actors.dense.kv_cache import KVCache
from actors.dense.model import DenseModel
from actors.dense.sampling.cuda_sampler import make_sampler
from actors.dense.sampling.sampler import Sample, token_logprobs
from actors.dense.scheduling.scheduler import Chunk
from actors.dense.scheduling.sequence import Sequence
from actors.exchange.interface import Exchange
from actors.gpu.host_to_device import to_device
from actors.protocol.messages import TokenLogprobs

_PROMPT_LOGITS_ROWS = 256
"""Number of prompt positions whose logits are in memory at once when log-probabilities of a prompt are
computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutputs:
    """The results of a step."""

    samples: list[tuple[Chunk, list[Sample]]]
    """For each chunk that samples: the sample of its last row, then those of its drafts' rows."""
    prompt_logprobs: list[tuple[Sequence, list[TokenLogprobs]]]


class ModelRunner:
    """The model of a dense actor, its cache and its sampler."""

    def __init__(self, model: DenseModel, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self._sample = make_sampler(model.device)
        self._draw = model.decode_head or self._draw_from_logits

    def compute(self, chunks: list[Chunk], exchange: Exchange) -> StepOutputs:
        """Compute one step. Raises ExchangeError, and any exception that the model raises for a sequence that
        cannot be computed."""
        model = self._model
        chunks = sorted(chunks, key=model.is_short, reverse=True)
        x = model.step(chunks, self._cache, exchange)
        placed = list(zip(chunks, _last_rows(chunks), strict=True))
        prompt_logprobs = self._prompt_logprobs(placed, x)
        samples = self._samples([(chunk, last) for chunk, last in placed if chunk.samples], x)
        return StepOutputs(samples=samples, prompt_logprobs=prompt_logprobs)

    def _samples(self, ends: list[tuple[Chunk, int]], x: torch.Tensor) -> list[tuple[Chunk, list[Sample]]]:
        """Sample for the chunks in `ends`, each given with its last row."""
        if not ends:
            return []
        rows = [row for chunk, last in ends for row in range(last, last + 1 + len(chunk.drafts))]
        samples = iter(self._draw(x, rows, _sampling([chunk for chunk, _ in ends])))
        return [(chunk, list(islice(samples, 1 + len(chunk.drafts)))) for chunk, _ in ends]

    def _draw_from_logits(self, x: torch.Tensor, rows: list[int], sequences: list[Sequence]) -> list[Sample]:
        logits = self._model.logits(_pick(x, rows))
        return self._sample(logits, sequences, self._model.config.eos_token_ids)

    def _prompt_logprobs(
        self, placed: list[tuple[Chunk, int]], x: torch.Tensor
    ) -> list[tuple[Sequence, list[TokenLogprobs]]]:
        """The log-probabilities of prompt tokens for the chunks in `placed`, each given with its last row.

        Position p predicts token p + 1, so the rows of a chunk report on tokens start + 1 .. end of the
        prompt.
        """
        collected = []
        for chunk, last in placed:
            sequence = chunk.sequence
            if not sequence.needs_prompt_logprobs:
                continue
            num_top = sequence.params.prompt_logprobs or 0
            first = last + 1 - chunk.num_tokens
            end = min(chunk.end, len(sequence.prompt_ids) - 1)
            for start in range(chunk.start, end, _PROMPT_LOGITS_ROWS):
                stop = min(start + _PROMPT_LOGITS_ROWS, end)
                rows = x[first + start - chunk.start : first + stop - chunk.start]
                targets = sequence.prompt_ids[start + 1 : stop + 1]
                collected.append((sequence, token_logprobs(self._model.logits(rows), targets, num_top)))
        return collected


def _last_rows(chunks: list[Chunk]) -> list[int]:
    """The row of each chunk's last token; the rows of its drafts follow that row."""
    rows: list[int] = []
    row = 0
    for chunk in chunks:
        rows.append(row + chunk.num_tokens - 1)
        row += chunk.num_rows
    return rows


def _pick(x: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Pick rows from x [T, H]. Return x itself if `rows` are all of its rows, as when all sequences
    decode."""
    if rows == list(range(x.shape[0])):
        return x
    return x.index_select(0, to_device(torch.tensor(rows), x.device))


def _sampling(ends: list[Chunk]) -> list[Sequence]:
    """The sequence that each sampling row continues: with the drafts before that row as its last tokens."""
    return [
        chunk.sequence.continued(chunk.drafts[:index])
        for chunk in ends
        for index in range(1 + len(chunk.drafts))
    ]
