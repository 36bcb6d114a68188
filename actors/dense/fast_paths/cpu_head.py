"""From the last layer's rows to their next tokens on a CPU: pick, norm, product and choice in one call of the
kernels.

The result has the bits of `DenseModel.logits` followed by the choice by kernels (`cpu_choice.py`). One call
saves the time between these operations. Logits are written to the same memory in every step, so no step
touches new memory.

Legend: R rows that sample a token, C rows that there is memory for, H hidden, V vocabulary.
"""

from __future__ import annotations

import ctypes
from array import array

import torch

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.weights import Norm
from actors.dense.layers.norm import norm_kernels, norm_weights
from actors.dense.sampling.cpu_choice import choose_by_kernels, filters
from actors.dense.sampling.sampler import Sample, is_adjusted, sample, with_reports
from actors.dense.scheduling.sequence import Sequence
from actors.kernels.layer import HeadTask
from actors.kernels.library import Kernels
from actors.kernels.threads import num_threads
from actors.linear import KernelProduct, Product


class CpuHead:
    """The norm, the head and the sampler of one model. Use `make`, which checks device, dtype and shapes. One
    thread uses it."""

    def __init__(self, kernels: Kernels, config: ModelConfig, norm: Norm, product: KernelProduct) -> None:
        self._run = kernels.decode_head
        self._config = config
        # The task has only the addresses of these tensors, so they must be kept here.
        self._norm, self._product = norm, product
        self._dtype = norm.weight.dtype
        self._use_room(1)

    @staticmethod
    def make(config: ModelConfig, norm: Norm, product: Product) -> CpuHead | None:
        """Return None if the kernels do not support device, dtype or shapes."""
        kernels = norm_kernels(config, norm.weight.dtype, norm.weight.device)
        if kernels is None or not isinstance(product, KernelProduct):
            return None
        return CpuHead(kernels, config, norm, product)

    def __call__(self, x: torch.Tensor, rows: list[int], sequences: list[Sequence]) -> list[Sample]:
        """Sample one token for each row of x [*, H] in `rows` [R], for the position after the last token of
        its sequence."""
        count = len(rows)
        if count > len(self._logits):
            self._use_room(1 << (count - 1).bit_length())
        task, picked, token_ids = self._task, array("q", rows), array("q", rows)
        is_plain = not any(map(is_adjusted, sequences))
        values = array(
            "d", [value for sequence in sequences for value in filters(sequence)] if is_plain else []
        )
        task.x = x.data_ptr()
        task.picked = picked.buffer_info()[0]
        task.filters = values.buffer_info()[0] if is_plain else None
        task.token_ids = token_ids.buffer_info()[0]
        task.num_rows = count
        task.num_threads = num_threads()
        if self._run(ctypes.addressof(task)):
            raise MemoryError(f"no memory for the next tokens of {count} rows")
        if not is_plain:
            return sample(choose_by_kernels, self._logits[:count], sequences, self._config.eos_token_ids)
        return with_reports(self._logits, token_ids.tolist(), sequences)

    def _use_room(self, num_rows: int) -> None:
        config = self._config
        is_bf16 = self._dtype == torch.bfloat16
        self._normed = torch.empty((num_rows, config.hidden_size), dtype=self._dtype)
        self._scores = torch.empty((num_rows if is_bf16 else 0, config.vocab_size), dtype=self._dtype)
        self._logits = torch.empty((num_rows, config.vocab_size), dtype=torch.float32)
        self._task = HeadTask(
            norm=norm_weights(self._norm),
            product=self._product.weights,
            normed=self._normed.data_ptr(),
            scores=self._scores.data_ptr(),
            logits=self._logits.data_ptr(),
            hidden_size=config.hidden_size,
            vocabulary=config.vocab_size,
            eps=config.layer_norm_eps,
            is_bf16=is_bf16,
        )
