"""A step of narrow chunks, which decode or compute few tokens of a prompt, on a CPU: one call of the kernels, exchanges included
where the transport allows it, else one per layer.

The bits are those of the same operations taken one by one (`model.py`); what is saved is the time between them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.weights import Norm
from actors.dense.batch import StepBatch
from actors.dense.kv_cache import KVCache
from actors.dense.norm import norm_kernels
from actors.dense.rope import Tables
from actors.dense.scheduler import Chunk
from actors.exchange.direct import DirectTurns
from actors.exchange.interface import Exchange
from actors.kernels.layer import LayerTask, LayerWeights, NormWeights, ProductWeights
from actors.kernels.library import Kernels
from actors.kernels.threads import num_threads
from actors.linear import KernelProduct, Product

_MAX_EXPERTS = 256
"""What the routing kernel takes."""
_MOST_WORK = 1 << 22
"""Of the attention of a narrow chunk: queries times positions times features of a query. A kernel that takes one query at a time
reads its context anew for each; beyond this, that takes longer than what one call saves."""
_UNFINISHED = 16
"""What the kernels return when they have stopped within a layer's exchange."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer without its experts."""

    input_norm: Norm
    qkv: Product
    """[H] -> [(A + 2 G) * D]: queries, keys, values."""
    out: Product
    post_attention_norm: Norm
    gate: Product


class DecodeLayers:
    """All layers of one model. `make` it, where device, dtype and shapes allow."""

    def __init__(self, kernels: Kernels, config: ModelConfig, layers: Sequence[Layer]) -> None:
        self._config = config
        self._layers = layers
        self._decode_layer = kernels.decode_layer
        self._decode_step = kernels.decode_step
        self._cache: KVCache | None = None
        """The one that the weights below know the addresses of."""
        self._weights: ctypes.Array[LayerWeights] = (LayerWeights * 0)()

    @staticmethod
    def make(
        config: ModelConfig, layers: Sequence[Layer], dtype: torch.dtype, device: torch.device
    ) -> DecodeLayers | None:
        """None where the kernels do not take device, dtype or shapes."""
        kernels = norm_kernels(config, dtype, device)
        shapes = (config.num_heads, config.num_kv_heads, config.head_dim)
        if kernels is None or not kernels.can_attend(*shapes) or config.num_experts > _MAX_EXPERTS:
            return None
        products = [product for layer in layers for product in (layer.qkv, layer.out, layer.gate)]
        if not all(isinstance(product, KernelProduct) for product in products):
            return None
        return DecodeLayers(kernels, config, layers)

    def is_narrow(self, chunk: Chunk) -> bool:
        """Whether the kernels are the fastest to take the chunk's tokens as decoding rows."""
        work = chunk.num_tokens * chunk.end * self._config.num_heads * self._config.head_dim
        return chunk.num_tokens == 1 or work <= _MOST_WORK

    def forward(
        self, x: torch.Tensor, batch: StepBatch, cache: KVCache, exchange: Exchange, tables: Tables
    ) -> torch.Tensor:
        """As DenseModel.forward, for embedded tokens x [B, H] of a batch of narrow chunks. x is overwritten."""
        if self._cache is not cache:
            self._cache = cache
            addresses = [self._addresses(i, cache) for i in range(len(self._layers))]
            self._weights = (LayerWeights * len(addresses))(*addresses)
        buffers = _Buffers.make(self._config, x)
        task = self._task(x, batch, tables, buffers)
        routed = (buffers.normed, buffers.expert_ids, buffers.expert_weights)
        combined: torch.Tensor | None = None
        layer, num_layers = 0, len(self._layers)
        while layer < num_layers:
            task.combined = 0 if combined is None else combined.data_ptr()
            turns = exchange.direct(num_layers, x)
            if turns is None:
                self._check(
                    self._decode_layer(ctypes.addressof(task), ctypes.addressof(self._weights[layer])), x
                )
                # What was dispatched is nobody's any longer when the next layer writes to it.
                combined = exchange.combine(exchange.dispatch(layer, *routed)).contiguous()
                layer += 1
                continue
            reached = self._run(task, turns, layer, x)
            combined = turns.combined if reached > layer else combined
            if reached < num_layers:
                combined = exchange.combine(exchange.take_over(reached, *routed)).contiguous()
            layer = reached + 1
        return x if combined is None else x + combined

    def _run(self, task: LayerTask, turns: DirectTurns, layer: int, x: torch.Tensor) -> int:
        """Layers from `layer` on with their exchanges, in one call. The first that is not complete, or the number of layers."""
        reached = ctypes.c_int64(layer)
        try:
            fault = self._decode_step(
                ctypes.addressof(task),
                ctypes.addressof(self._weights),
                len(self._layers),
                ctypes.addressof(turns.task),
                ctypes.addressof(reached),
            )
        finally:
            turns.end()
        if fault != _UNFINISHED:
            self._check(fault, x)
        return reached.value

    def _check(self, fault: int, x: torch.Tensor) -> None:
        if fault:
            raise MemoryError(f"no memory for a layer of {x.shape[0]} sequences")

    def _addresses(self, index: int, cache: KVCache) -> LayerWeights:
        layer = self._layers[index]
        keys, values = cache.addresses(index)
        return LayerWeights(
            input_norm=_norm(layer.input_norm),
            qkv=_product(layer.qkv),
            out=_product(layer.out),
            post_attention_norm=_norm(layer.post_attention_norm),
            gate=_product(layer.gate),
            keys=keys,
            values=values,
        )

    def _task(self, x: torch.Tensor, batch: StepBatch, tables: Tables, buffers: _Buffers) -> LayerTask:
        rows, config = batch.decode, self._config
        assert rows is not None
        cos, sin = tables
        return LayerTask(
            x=x.data_ptr(),
            normed=buffers.normed.data_ptr(),
            qkv=buffers.qkv.data_ptr(),
            attended=buffers.attended.data_ptr(),
            scores=buffers.scores.data_ptr(),
            expert_ids=buffers.expert_ids.data_ptr(),
            expert_weights=buffers.expert_weights.data_ptr(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            slots=batch.slots.data_ptr(),
            block_table=rows.block_table.data_ptr(),
            starts=rows.starts.data_ptr(),
            ends=rows.ends.data_ptr(),
            num_sequences=x.shape[0],
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_groups=config.num_kv_heads,
            head_dim=config.head_dim,
            table_stride=rows.block_table.shape[1],
            block_size=rows.block_size,
            num_experts=config.num_experts,
            eps=config.layer_norm_eps,
            jitter=config.router_jitter,
            is_bf16=x.dtype == torch.bfloat16,
            num_threads=num_threads(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Buffers:
    """What a step writes, layer after layer."""

    normed: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    scores: torch.Tensor
    expert_ids: torch.Tensor
    expert_weights: torch.Tensor

    @staticmethod
    def make(config: ModelConfig, x: torch.Tensor) -> _Buffers:
        num_rows = x.shape[0]
        width = config.num_heads * config.head_dim
        return _Buffers(
            normed=torch.empty_like(x),
            qkv=x.new_empty((num_rows, width + 2 * config.num_kv_heads * config.head_dim)),
            attended=x.new_empty((num_rows, width)),
            scores=x.new_empty((num_rows, config.num_experts)),
            expert_ids=torch.empty((num_rows, 2), dtype=torch.int64),
            expert_weights=torch.empty((num_rows, 2), dtype=torch.float32),
        )


def _norm(norm: Norm) -> NormWeights:
    return NormWeights(gain=norm.weight.data_ptr(), shift=norm.bias.data_ptr())


def _product(product: Product) -> ProductWeights:
    assert isinstance(product, KernelProduct)
    return product.weights
