"""A step of short chunks on a CPU: one call of the kernels for all layers, or one per layer.

One call is enough if the kernels can exchange rows by themselves. The result has the bits of the same
operations called one by one (`model.py`); fewer calls save the time between them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from actors.checkpoint.config import ModelConfig
from actors.dense.fast_paths.cpu_rows import CpuRows
from actors.dense.kv_cache import KVCache
from actors.dense.layers.layer import Layer
from actors.dense.layers.norm import norm_kernels, norm_weights
from actors.dense.scheduling.scheduler import Chunk
from actors.exchange.interface import Exchange, KernelExchange
from actors.kernels.layer import LayerTask, LayerWeights, ProductWeights
from actors.kernels.library import Kernels
from actors.linear import KernelProduct, Product

_MAX_EXPERTS = 256
"""Most experts that the routing kernel supports."""
_MOST_WORK = 1 << 22
"""Most work for which a chunk is short on CPUs where torch's attention multiplies matrices in tiles (AMX):
number of queries times positions times features of a query. For more work, the tiles save more time than one
call of the kernels does."""
_UNFINISHED = 16
"""Returned by the kernels if they have stopped within a layer's exchange."""


class CpuStep:
    """All layers of one model. Use `make`, which checks device, dtype and shapes."""

    def __init__(
        self, kernels: Kernels, config: ModelConfig, embedding: torch.Tensor, layers: Sequence[Layer]
    ) -> None:
        self._config = config
        self._layers = layers
        self._decode_layer = kernels.decode_layer
        self._decode_step = kernels.decode_step
        self._rows = CpuRows(kernels, config, embedding)
        self._most_work = _MOST_WORK if torch.cpu._is_amx_tile_supported() else None
        self._cache: KVCache | None = None
        """The cache whose addresses `_weights` contains."""
        self._weights: ctypes.Array[LayerWeights] = (LayerWeights * 0)()

    @staticmethod
    def make(config: ModelConfig, embedding: torch.Tensor, layers: Sequence[Layer]) -> CpuStep | None:
        """Return None if the kernels do not support device, dtype or shapes. embedding: [V, H]."""
        kernels = norm_kernels(config, embedding.dtype, embedding.device)
        if kernels is None or not kernels.can_attend(config.head_dim) or config.num_experts > _MAX_EXPERTS:
            return None
        products = [product for layer in layers for product in (layer.qkv, layer.out, layer.gate)]
        if not all(isinstance(product, KernelProduct) for product in products):
            return None
        return CpuStep(kernels, config, embedding, layers)

    def is_short(self, chunk: Chunk) -> bool:
        """Whether it is fastest to compute the chunk's tokens as decoding rows, with the kernels."""
        if self._most_work is None or chunk.num_tokens == 1:
            return True
        return (
            chunk.num_tokens * chunk.end * self._config.num_heads * self._config.head_dim <= self._most_work
        )

    def forward(self, chunks: list[Chunk], cache: KVCache, exchange: Exchange) -> torch.Tensor:
        """Do what `DenseModel.step` does for the rows [B, H] of short chunks. The next call overwrites the
        result."""
        if self._cache is not cache:
            self._cache = cache
            addresses = [self._addresses(i, cache) for i in range(len(self._layers))]
            self._weights = (LayerWeights * len(addresses))(*addresses)
        rows = self._rows
        rows.fill(chunks, cache)
        task, x = rows.task, rows.x
        kernels = exchange.kernels
        combined: torch.Tensor | None = None
        layer, num_layers = 0, len(self._layers)
        while layer < num_layers:
            task.combined = 0 if combined is None else combined.data_ptr()
            kernel_exchange = kernels.begin(num_layers, x) if kernels is not None else None
            if kernels is None or kernel_exchange is None:
                self._check(
                    self._decode_layer(ctypes.addressof(task), ctypes.addressof(self._weights[layer])), x
                )
                # The exchange no longer reads the dispatched rows when the next layer writes to them.
                combined = exchange.combine(exchange.dispatch(layer, *rows.routed)).contiguous()
                layer += 1
                continue
            reached = self._run(task, kernel_exchange, layer, x)
            if reached == num_layers:
                return x
            combined = exchange.combine(kernels.take_over(reached, *rows.routed)).contiguous()
            layer = reached + 1
        return x if combined is None else x.add_(combined)

    def _run(self, task: LayerTask, kernel_exchange: KernelExchange, layer: int, x: torch.Tensor) -> int:
        """Compute the layers from `layer` on with their exchanges, in one call.

        Return the first layer that is not complete, or the number of layers.
        """
        reached = ctypes.c_int64(layer)
        try:
            fault = self._decode_step(
                ctypes.addressof(task),
                ctypes.addressof(self._weights),
                len(self._layers),
                ctypes.addressof(kernel_exchange.task),
                ctypes.addressof(reached),
            )
        finally:
            kernel_exchange.end()
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
            input_norm=norm_weights(layer.input_norm),
            qkv=_product(layer.qkv),
            out=_product(layer.out),
            post_attention_norm=norm_weights(layer.post_attention_norm),
            gate=_product(layer.gate),
            keys=keys,
            values=values,
        )


def _product(product: Product) -> ProductWeights:
    assert isinstance(product, KernelProduct)
    return product.weights
