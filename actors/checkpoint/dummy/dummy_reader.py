"""Makes random weights for benchmarks and tests, and writes them as a checkpoint.

Every tensor depends on (seed, name) alone, so each actor makes only its own tensors, and the model is the
same for every placement. Drawing 84 GB of normal numbers would take minutes, so all tensors are cut from one
long block of them, read cyclically from an offset that depends on the name. The block's length is a prime, so
no two rows of a matrix begin at the same offset, and no two rows and no two logits are equal.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Set
from pathlib import Path

import torch

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.dummy.small_files import write_small_files
from actors.checkpoint.layout import FLOAT, Shape, all_tensors
from actors.checkpoint.reader import TensorInfo
from actors.checkpoint.weights import ProgressCallback
from actors.checkpoint.write import declare_quantized, empty_directory, write_weights
from actors.errors import MissingTensorError, TensorMismatchError

_BLOCK_LENGTH = 4_194_301
_WEIGHT_STD = 0.02
_GATE_STD = 0.3
"""Large enough that gate scores differ clearly and the routes spread over all experts."""

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class DummyReader:
    """A WeightReader of random tensors: weights and biases N(0, 0.02), gates N(0, 0.3), norm scales 1.

    The dtype is the config's stored dtype, or bfloat16 if the config names none. On a GPU the tensors are
    made there, with the same values as on a CPU: 84 GB take seconds instead of minutes.
    """

    def __init__(self, config: ModelConfig, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self._shapes = all_tensors(config)
        self._device = torch.device(device)
        self._dtype = _DTYPES[config.stored_dtype or "bfloat16"]
        self._seed = seed
        self._blocks: dict[float, torch.Tensor] = {}

    @property
    def names(self) -> Set[str]:
        return self._shapes.keys()

    @property
    def origin(self) -> str:
        return f"random weights (seed {self._seed})"

    def check(self, name: str, expected_shape: Shape, expected_dtype: str = FLOAT) -> TensorInfo:
        if name not in self._shapes:
            raise MissingTensorError(self.origin, name)
        shape = self._shapes[name]
        if shape != expected_shape:
            raise TensorMismatchError(self.origin, name, "shape", str(list(shape)), str(list(expected_shape)))
        return TensorInfo(shape=shape, dtype=self._dtype)

    def read(self, name: str, expected_shape: Shape, expected_dtype: str = FLOAT) -> torch.Tensor:
        self.check(name, expected_shape)
        if name.endswith("norm.weight"):
            return torch.ones(expected_shape, dtype=self._dtype, device=self._device)
        block = self._block(_GATE_STD if name.endswith("gate.weight") else _WEIGHT_STD)
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        offset = int.from_bytes(digest[:8], "little") % _BLOCK_LENGTH
        return _cyclic_window(block, offset, math.prod(expected_shape)).view(expected_shape)

    def _block(self, std: float) -> torch.Tensor:
        """Return the block [_BLOCK_LENGTH] of normal numbers.

        Two threads may both make it, with the same result.
        """
        block = self._blocks.get(std)
        if block is None:
            generator = torch.Generator().manual_seed(self._seed)
            drawn = torch.randn(_BLOCK_LENGTH, generator=generator).mul_(std)
            block = self._blocks[std] = drawn.to(self._dtype).to(self._device)
        return block


def write_checkpoint(
    preset: str,
    out_dir: str | Path,
    progress: ProgressCallback | None = None,
    seed: int = 0,
    quantization: str | None = None,
) -> None:
    """Write a preset as a checkpoint directory that loads like a real one.

    If `quantization` names a kind, the experts are quantized to it. Raises ValueError for an unknown preset
    and FileExistsError if the directory is not empty.
    """
    directory = empty_directory(out_dir)
    config = write_small_files(preset, directory)
    storage = None
    if quantization is not None:
        storage = declare_quantized(directory, directory, config, quantization)
    write_weights(config, DummyReader(config, seed), directory, progress, storage)


def _cyclic_window(block: torch.Tensor, offset: int, length: int) -> torch.Tensor:
    """Return a copy of `length` elements: block[offset:], then the whole block as often as needed."""
    window = torch.empty(length, dtype=block.dtype, device=block.device)
    filled = 0
    while filled < length:
        part = block[offset : offset + length - filled]
        window[filled : filled + len(part)] = part
        filled += len(part)
        offset = 0
    return window
