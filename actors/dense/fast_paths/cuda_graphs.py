"""CUDA graphs of steps that only decode, with all experts in this process: one launch per step instead of
hundreds.

Legend: B rows of a step, W blocks of its longest sequence, both padded; H hidden.

A step's sizes are padded to buckets: of rows, of parts of the context and of blocks (`actors.gpu.buckets`).
The first step of a size is computed once without a graph and then captured. Before every replay the step's
input is copied to the same addresses.

Rows after the step's own have slot -1 and end 0, so that attention does not touch the cache for them and no
expert gets them. All other steps (with prompts, with experts elsewhere, or with more rows than the largest
bucket) are computed launch by launch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

import torch

from actors.dense.batch import DecodeRows, StepBatch, aligned_places
from actors.dense.kv_cache import KVCache
from actors.devices import has_triton
from actors.exchange.interface import Combined, Exchange
from actors.exchange.local import LocalExchange
from actors.gpu.attention.splits import num_parts
from actors.gpu.buckets import batch_bucket, blocks_bucket, parts_bucket
from actors.gpu.capture import CudaCapture

logger = logging.getLogger(__name__)

_SLOTS = 3
"""The index of the slots among the numbers of a step."""
_NO_SLOT = -1
"""The slot of a row that only pads the batch."""

Size: TypeAlias = tuple[int, int, int]
"""Bucket of rows, bucket of parts, bucket of blocks."""

Experts: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, rows [B, H], expert ids, weights) -> what the experts add, [B, H]."""


class CudaGraphs:
    """The graphs of one model. One thread uses it."""

    def __init__(
        self, compute: Callable[[StepBatch, KVCache, Experts], torch.Tensor], device: torch.device
    ) -> None:
        """`compute` runs the whole model for one step and returns the last layer's output [B, H]."""
        self._compute = compute
        self._device = device
        self._capture = CudaCapture()
        self._is_broken = False
        self.made_for: tuple[KVCache, Combined] | None = None
        """Cache and experts whose addresses are in the graphs."""
        self._inputs: dict[tuple[int, int], _Inputs] = {}
        """Inputs by bucket of rows and bucket of blocks."""
        self._steps: dict[Size, tuple[Callable[[], None], torch.Tensor]] = {}

    def forward(self, batch: StepBatch, cache: KVCache, exchange: Exchange) -> torch.Tensor | None:
        """Do what `DenseModel.forward` does for a batch on the host. The result is valid until the next call.
        Return None if this step cannot be computed by a graph."""
        rows, bucket = batch.decode, batch_bucket(len(batch.token_ids))
        if batch.prefills or rows is None or bucket is None or self._is_broken:
            return None
        if not isinstance(exchange, LocalExchange) or exchange.combined is None:
            return None
        if self.made_for != (cache, exchange.combined):
            self._inputs.clear()
            self._steps.clear()
            # The graphs' memory was freed with the last of them, so no further graph can be captured into it.
            self._capture = CudaCapture()
            self.made_for = (cache, exchange.combined)
        width = blocks_bucket(rows.block_table.shape[1])
        if (bucket, width) not in self._inputs:
            self._inputs[bucket, width] = _Inputs(bucket, width, rows.block_size, self._device)
        inputs = self._inputs[bucket, width]
        inputs.take(batch, rows)
        key = bucket, parts_bucket(num_parts(rows.most_visible)), width
        if key not in self._steps and not self._make(key, inputs, rows.most_visible, cache, exchange):
            return None
        replay, out = self._steps[key]
        replay()
        return out[: len(batch.token_ids)]

    def _make(
        self, key: Size, inputs: _Inputs, most_visible: int, cache: KVCache, exchange: Exchange
    ) -> bool:
        """Capture a step of this size; return whether that worked. After one failure nothing is captured any
        more."""
        batch = inputs.batch(most_visible)

        def work() -> torch.Tensor:
            assert batch.decode is not None
            is_padding = (batch.decode.ends == 0)[:, None]

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
        logger.info("captured a step of %d rows, %d parts of context, %d blocks", *key)
        return True


def make_cuda_graphs(
    compute: Callable[[StepBatch, KVCache, Experts], torch.Tensor], device: torch.device
) -> CudaGraphs | None:
    """The graphs for a model, or None if the device cannot capture steps."""
    if not has_triton(device):
        return None
    return CudaGraphs(compute, device)


class _Inputs:
    """The memory from which the graphs of one size read a step: one tensor on the device and one of the same
    shape on the host, so that the numbers of a step are sent in a single copy.

        numbers [4, B] int64     token ids, positions, is_long, slots
        edges [2, B] int32       starts and ends, each row padded to a multiple of 16 bytes
        block_table [B, W] int32
    """

    def __init__(self, num_rows: int, width: int, block_size: int, device: torch.device) -> None:
        self._num_rows, self._width, self._block_size = num_rows, width, block_size
        self._places = aligned_places(num_rows)
        size = 8 * num_rows + 2 * self._places + num_rows * width
        self._there = torch.zeros(size, dtype=torch.int32, device=device)
        is_cuda = device.type == "cuda"
        self._here = torch.zeros(size, dtype=torch.int32, pin_memory=is_cuda)
        numbers, edges, table = (part.numpy() for part in self._parts(self._here))
        self._numbers, self._edges, self._table = numbers, edges, table
        numbers[_SLOTS] = _NO_SLOT
        self._num_used = 0
        self._is_copied = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def _parts(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_rows, places = self._num_rows, self._places
        sizes = [8 * num_rows, 2 * places, num_rows * self._width]
        numbers, edges, table = torch.split(memory, sizes)
        numbers = numbers.view(torch.int64).view(4, num_rows)
        return numbers, edges.view(2, places)[:, :num_rows], table.view(num_rows, self._width)

    def take(self, batch: StepBatch, rows: DecodeRows) -> None:
        """Send a step's rows to the device; the rows after them become padding."""
        if self._is_copied is not None:
            self._is_copied.synchronize()
        num_rows, num_blocks = rows.block_table.shape
        if num_rows < self._num_used:
            unused = slice(num_rows, self._num_used)
            self._numbers[:, unused], self._edges[:, unused] = 0, 0
            self._numbers[_SLOTS, unused] = _NO_SLOT
        self._num_used = num_rows
        for index, part in enumerate((batch.token_ids, batch.positions, batch.is_long, batch.slots)):
            self._numbers[index, :num_rows] = part.numpy()
        self._edges[0, :num_rows], self._edges[1, :num_rows] = rows.starts.numpy(), rows.ends.numpy()
        self._table[:num_rows, :num_blocks] = rows.block_table.numpy()
        self._there.copy_(self._here, non_blocking=True)
        if self._is_copied is not None:
            self._is_copied.record()

    def batch(self, most_visible: int) -> StepBatch:
        """A batch whose tensors are views of the memory on the device."""
        (token_ids, positions, is_long, slots), (starts, ends), table = self._parts(self._there)
        rows = DecodeRows(
            block_table=table,
            starts=starts,
            ends=ends,
            block_size=self._block_size,
            most_visible=most_visible,
        )
        return StepBatch(
            token_ids=token_ids, positions=positions, is_long=is_long, slots=slots, decode=rows, prefills=()
        )
