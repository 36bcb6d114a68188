"""Steps that only decode, with all experts in this process: one CUDA graph per size, instead of hundreds of launches.

Legend: B rows of a step, H hidden, M blocks of the longest sequence that fits the cache.

A step's sizes are padded to a batch bucket and a bucket of context parts (`actors.gpu.buckets`). The first step of a pair is
computed once as any other and then captured; what it reads is copied to the same places before every replay. Rows behind the
step's own have slot -1 and end 0: attention leaves the cache alone for them, and no expert gets them. All other steps (prompts among
them, experts elsewhere, more rows than the largest bucket) go the usual way, launch by launch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from actors.checkpoint.config import ModelConfig
from actors.dense.batch import DecodeRows, StepBatch
from actors.dense.kv_cache import KVCache
from actors.exchange.interface import Exchange
from actors.exchange.local import Combined, LocalExchange
from actors.gpu.available import has_triton
from actors.gpu.buckets import batch_bucket, parts_bucket
from actors.gpu.capture import CudaCapture
from actors.gpu.splits import num_parts

logger = logging.getLogger(__name__)

_NO_SLOT = -1
"""Of a row that only pads the batch."""

Experts: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, rows [B, H], expert ids, weights) -> what the experts add, [B, H]."""


class ComputeStep(Protocol):
    """The whole model for one step: the last layer's output [B, H]."""

    def __call__(self, batch: StepBatch, cache: KVCache, experts: Experts) -> torch.Tensor: ...


Capture: TypeAlias = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], None], torch.Tensor]]
"""Work that reads and writes the same places whenever it runs -> how to run it again, and where its result is then."""


class CapturedSteps:
    """The graphs of one model. One thread uses it."""

    def __init__(
        self, config: ModelConfig, compute: ComputeStep, make_capture: Callable[[], Capture]
    ) -> None:
        self._config = config
        self._compute = compute
        self._make_capture = make_capture
        self._capture = make_capture()
        self._is_broken = False
        self.made_for: tuple[KVCache, Combined] | None = None
        """Cache and experts whose places in memory the graphs know."""
        self._inputs: dict[int, _Inputs] = {}
        self._steps: dict[tuple[int, int], tuple[Callable[[], None], torch.Tensor]] = {}

    @property
    def sizes(self) -> frozenset[tuple[int, int]]:
        """(batch bucket, bucket of parts) of all graphs."""
        return frozenset(self._steps)

    def forward(self, batch: StepBatch, cache: KVCache, exchange: Exchange) -> torch.Tensor | None:
        """As DenseModel.forward, until the next call; None where this step has to go the usual way."""
        rows, bucket = batch.decode, batch_bucket(len(batch.token_ids))
        if batch.prefills or rows is None or bucket is None or self._is_broken:
            return None
        if not isinstance(exchange, LocalExchange) or exchange.combined is None:
            return None
        if self.made_for != (cache, exchange.combined):
            self._inputs.clear()
            self._steps.clear()
            # The graphs' memory went with the last of them: none can be captured into it any longer.
            self._capture = self._make_capture()
            self.made_for = (cache, exchange.combined)
        if bucket not in self._inputs:
            self._inputs[bucket] = _Inputs.make(self._config, bucket, rows.block_size, cache, batch)
        inputs = self._inputs[bucket]
        inputs.take(batch, rows)
        key = bucket, parts_bucket(num_parts(rows.most_visible))
        if key not in self._steps and not self._make(key, inputs, rows.most_visible, cache, exchange):
            return None
        replay, out = self._steps[key]
        replay()
        return out[: len(batch.token_ids)]

    def _make(
        self, key: tuple[int, int], inputs: _Inputs, most_visible: int, cache: KVCache, exchange: Exchange
    ) -> bool:
        """Whether it could be captured. What cannot be captured once is not tried again."""
        batch = inputs.batch(most_visible)

        def work() -> torch.Tensor:
            is_padding = (inputs.edges[1] == 0)[:, None]

            def experts(
                layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
            ) -> torch.Tensor:
                if key[0] > 2:  # A smaller bucket is never padded.
                    expert_ids = expert_ids.masked_fill(is_padding, -1)
                return exchange.combine(exchange.dispatch(layer, rows, expert_ids, weights))

            return self._compute(batch, cache, experts)

        try:
            self._steps[key] = self._capture(work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("decoding goes on without CUDA graphs: %s", error)
            self._is_broken = True
            return False
        logger.info("captured a step of %d rows, %d parts of context", *key)
        return True


def make_captured(config: ModelConfig, compute: ComputeStep, device: torch.device) -> CapturedSteps | None:
    """None where steps cannot be captured."""
    if not has_triton(device):
        return None
    return CapturedSteps(config, compute, CudaCapture)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inputs:
    """Where the graphs of one batch bucket read what a step is made of."""

    numbers: torch.Tensor
    """[4, B] int64: token ids, positions, is_long, slots."""
    edges: torch.Tensor
    """[2, B] int32: starts and ends."""
    block_table: torch.Tensor
    """[B, M] int32."""
    block_size: int

    @staticmethod
    def make(config: ModelConfig, bucket: int, block_size: int, cache: KVCache, batch: StepBatch) -> _Inputs:
        longest = min(cache.num_rows, config.max_position_embeddings)
        device = batch.token_ids.device
        return _Inputs(
            numbers=torch.zeros((4, bucket), dtype=torch.int64, device=device),
            edges=torch.zeros((2, bucket), dtype=torch.int32, device=device),
            block_table=torch.zeros((bucket, -(-longest // block_size)), dtype=torch.int32, device=device),
            block_size=block_size,
        )

    def take(self, batch: StepBatch, rows: DecodeRows) -> None:
        """Copy a step's rows here, on the device; those behind them become padding."""
        num_rows, num_blocks = rows.block_table.shape
        if num_rows < self.edges.shape[1]:
            self.numbers.zero_()
            self.numbers[3].fill_(_NO_SLOT)
            self.edges.zero_()
        numbers = (batch.token_ids, batch.positions, batch.is_long, batch.slots)
        torch.stack(numbers, out=self.numbers[:, :num_rows])
        torch.stack((rows.starts, rows.ends), out=self.edges[:, :num_rows])
        self.block_table[:num_rows, :num_blocks].copy_(rows.block_table)

    def batch(self, most_visible: int) -> StepBatch:
        """The same places as a step."""
        token_ids, positions, is_long, slots = self.numbers
        rows = DecodeRows(
            block_table=self.block_table,
            starts=self.edges[0],
            ends=self.edges[1],
            block_size=self.block_size,
            most_visible=most_visible,
        )
        return StepBatch(
            token_ids=token_ids, positions=positions, is_long=is_long, slots=slots, decode=rows, prefills=()
        )
