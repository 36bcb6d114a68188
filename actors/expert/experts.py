"""The grouped FFN: computes all rows of one layer for the experts of an actor.

Legend: T tokens, H hidden, K experts per token, F expert width, N results (valid (token, expert) pairs).

    rows [T, H], expert_ids [T, K]   each row once; -1 for an expert that another actor computes
    one matrix per expert            its rows in token order, through w2(silu(w1 x) * (w3 x))
    results [N, H]                   one row per valid (t, k), row-major

An expert's rows are one matrix and nothing else enters its product, so its results are the same bits,
whatever other experts the actor holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.quantized_weight import QuantizedExpert
from actors.checkpoint.read_quantized import read_quantized_experts
from actors.checkpoint.weights import ExpertWeights, ProgressCallback, WeightReader, read_experts
from actors.devices import has_triton
from actors.exchange.interface import Combined
from actors.expert.layers.cpu_kernels import GroupedLinearLayer
from actors.expert.layers.grouped_mm import GroupedMatmulLayer
from actors.expert.layers.onednn import PackedLayer
from actors.memory import release_free_memory

_Stream: TypeAlias = Iterator[tuple[int, int, ExpertWeights | QuantizedExpert]]


class LayerExperts(Protocol):
    """The experts of one layer, computed by the matrix product that suits device and dtype."""

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """Compute as GroupedExperts.forward does; num_results > 0."""

    def expert(self, slot: int) -> object:
        """The packed expert in a slot; another layer of the same class can take it over unchanged."""


class GroupedExperts:
    """Some experts of a model in all its layers. Threads may compute while one thread changes the experts."""

    def __init__(self, experts: Sequence[int], layers: Sequence[LayerExperts]) -> None:
        self._layers = [HeldLayer(tuple(experts), layer) for layer in layers]
        self.combined: Combined | None = None
        """For LocalExchange, if the layers can add each token's results up themselves; else None."""

    @staticmethod
    def load(
        reader: WeightReader,
        config: ModelConfig,
        experts: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        progress: ProgressCallback | None = None,
        quantization: str | None = None,
    ) -> GroupedExperts:
        """Read and pack these experts one by one; only one tensor at a time is in memory twice.

        `quantization` is the result of `serving_quantization`, None for weights of the dtype. Raises
        CheckpointError, and ValueError if no experts are named.
        """
        held = GroupedExperts([], [_Nothing()] * config.num_layers)
        held.change(reader, config, experts, dtype, device, progress, quantization)
        return held

    def change(
        self,
        reader: WeightReader,
        config: ModelConfig,
        experts: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        progress: ProgressCallback | None = None,
        quantization: str | None = None,
    ) -> None:
        """Hold these experts in place of the present ones, layer after layer.

        At most one layer is in memory twice. Only experts that are not held in every layer are read. Raises
        as `load` does; after an error the layers that were done hold the new experts, the others the old
        ones.
        """
        if not experts:
            raise ValueError("experts is empty, expected at least one")
        self.combined = self._combined if has_triton(torch.device(device)) else None
        slots = slot_table(experts, config.num_experts).to(device)
        make_layer = _layer_kind(torch.device(device), dtype, config, quantization is not None)
        kept = frozenset(self.experts)
        new = [expert for expert in experts if expert not in kept]
        stream: _Stream
        if quantization is None:
            stream = read_experts(reader, config, new, dtype, device, progress)
        else:
            stream = read_quantized_experts(reader, config, new, quantization, device, progress)
        for index, present in enumerate(self._layers):
            layer = make_layer(slots, _merge(experts, kept, present, stream))
            # This is one assignment, so a forward pass sees either the old layer or the new layer.
            self._layers[index] = HeldLayer(tuple(experts), layer)
            del layer, present
            release_free_memory()
        # The stream reports an expert as done when the next is asked for, so ask once more after the last.
        assert next(stream, None) is None

    @property
    def experts(self) -> tuple[int, ...]:
        """The experts that are held in every layer, ascending."""
        return tuple(sorted(frozenset.intersection(*(frozenset(layer.experts) for layer in self._layers))))

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def layer(self, layer: int) -> HeldLayer:
        """The experts of a layer that are held at this moment; later changes do not affect the result."""
        return self._layers[layer]

    def forward(
        self,
        layer: int,
        rows: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
        num_results: int,
    ) -> torch.Tensor:
        """Results [num_results, H] of rows [T, H], in the rows' dtype.

        expert_ids [T, K] int64 names logical experts, -1 for an expert that another actor computes; weights
        [T, K] float32; all are on the experts' device. num_results is the number of valid (t, k): the caller
        knows it, which saves a sync with the device. A result is the product in the model's dtype, times its
        weight in float32, rounded once. Raises ValueError for an expert that this actor does not hold; on
        CUDA the results may be wrong instead.
        """
        return self._layers[layer].forward(rows, expert_ids, weights, num_results)

    def _combined(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        compute: Any = self._layers[layer].compute
        total: torch.Tensor = compute.combined(rows, expert_ids, weights)
        return total


@dataclass(frozen=True, slots=True)
class HeldLayer:
    """The experts of one layer: which ones, slot by slot, and their weights."""

    experts: tuple[int, ...]
    compute: LayerExperts

    def forward(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        """Compute as GroupedExperts.forward does, in this layer."""
        if num_results == 0:
            return rows.new_empty((0, rows.shape[1]))
        return self.compute(rows, expert_ids, weights, num_results)


class _Nothing:
    """A layer before any expert was loaded."""

    def __call__(
        self, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        raise ValueError("expert_ids names an expert that is not on this rank")

    def expert(self, slot: int) -> object:
        raise IndexError(slot)


NOT_HERE = -1
"""Slot of expert id -1."""
FOREIGN = -2
"""Slot of an expert that this actor does not hold."""


def slot_table(experts: Sequence[int], num_experts: int) -> torch.Tensor:
    """The table [E + 1] int64 of slots by expert id; id -1 reads the last entry."""
    table = torch.full((num_experts + 1,), FOREIGN, dtype=torch.int64)
    table[-1] = NOT_HERE
    table[list(experts)] = torch.arange(len(experts))
    return table


def _layer_kind(
    device: torch.device, dtype: torch.dtype, config: ModelConfig, is_quantized: bool
) -> Callable[[torch.Tensor, Iterable[Any]], LayerExperts]:
    """The fastest layer class for device, dtype and sizes.

    `grouped_mm` takes bfloat16 only, the project's kernels certain dtypes and sizes, PackedLayer everything.
    """
    if has_triton(device):
        from actors.expert.layers.triton_experts import TritonLayer

        return TritonLayer
    if device.type == "cuda" and dtype == torch.bfloat16:
        return GroupedMatmulLayer
    sizes = config.hidden_size, config.intermediate_size
    if device.type == "cpu" and GroupedLinearLayer.suits(dtype, *sizes, is_quantized):
        return partial(GroupedLinearLayer, dtype=dtype)
    return PackedLayer


def _merge(
    experts: Sequence[int], kept: frozenset[int], present: HeldLayer, stream: _Stream
) -> Iterator[object]:
    """Yield the expert for each slot: from the present layer if it was kept, else the next that is read."""
    for expert in experts:
        yield present.compute.expert(present.experts.index(expert)) if expert in kept else next(stream)[2]
