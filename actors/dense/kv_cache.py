"""Keys and values of all sequences, in blocks.

Legend: L layers, R = num_blocks * block_size cache rows, G key-value heads, D head dimension.
"""

from __future__ import annotations

import torch

from actors.checkpoint.config import ModelConfig


class KVCache:
    """One tensor [L, 2, R, G, D]. Its row `block * block_size + offset` holds one position of one
    sequence."""

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        rows = num_blocks * block_size
        self.block_size = block_size
        # The tensor is not zeroed: memory that no sequence has touched yet is then not resident, and
        # attention never reads such rows unmasked.
        self._data = torch.empty(
            config.num_layers, 2, rows, config.num_kv_heads, config.head_dim, dtype=dtype, device=device
        )

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and the values [R, G, D] of a layer, as views of the cache."""
        return self._data[layer, 0], self._data[layer, 1]

    def addresses(self, layer: int) -> tuple[int, int]:
        """The memory addresses of the keys and of the values [R, G, D] of a layer."""
        return self._data[layer, 0].data_ptr(), self._data[layer, 1].data_ptr()

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys and values [T, G, D] of one layer in cache rows `slots` [T]."""
        self._data[layer, 0].index_copy_(0, slots, keys)
        self._data[layer, 1].index_copy_(0, slots, values)

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the cache rows `slots` of any shape [...]: keys and values, each [..., G, D]."""
        flat = slots.flatten()
        shape = (*slots.shape, *self._data.shape[3:])
        keys = self._data[layer, 0].index_select(0, flat).view(shape)
        return keys, self._data[layer, 1].index_select(0, flat).view(shape)


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token over all layers."""
    return config.num_layers * 2 * config.kv_size * dtype.itemsize
