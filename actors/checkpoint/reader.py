"""Reads the tensors of a checkpoint directory by name, memory-mapped.

A tensor that `read` returns is mapped from its file: using it faults pages in, and once the tensor and all
views of it are gone, its pages no longer count as this process's memory. Between two reads the reader keeps
only names, shapes and dtypes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from actors.checkpoint.index import INDEX_FILE, SINGLE_FILE, read_index
from actors.checkpoint.layout import FLOAT, Shape
from actors.errors import MissingTensorError, TensorMismatchError, UnreadableFileError

_T = TypeVar("_T")

_DTYPES = {
    FLOAT: {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32},
    "I8": {"I8": torch.int8},
    "F8_E4M3": {"F8_E4M3": torch.float8_e4m3fn},
    "I32": {"I32": torch.int32},
    "I64": {"I64": torch.int64, "I32": torch.int32},
}
"""Stored dtypes that are allowed for each expected dtype. A packed matrix's shape may be I64 or I32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """Shape and dtype of a tensor that has not been read."""

    shape: Shape
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class WeightReader(Protocol):
    """A source of weights: a checkpoint's files or a generator."""

    @property
    def names(self) -> Set[str]:
        """Names of all tensors."""

    @property
    def origin(self) -> str:
        """The file, or a description of the source, for error messages."""

    def check(self, name: str, expected_shape: Shape, expected_dtype: str = FLOAT) -> TensorInfo:
        """Look a tensor up without reading it. `expected_dtype` is a dtype of `layout.stored_parts`.

        Raises MissingTensorError, TensorMismatchError or UnreadableFileError.
        """

    def read(self, name: str, expected_shape: Shape, expected_dtype: str = FLOAT) -> torch.Tensor:
        """Return the tensor in its stored dtype; callers must not write to it. Raises what `check` raises."""


class CheckpointReader:
    """Reads a directory with an index and shards, or with a single model.safetensors.

    Thread-safe and picklable.

    A shard's header is read when one of its tensors is first requested, so shards that are not needed may be
    missing.
    """

    def __init__(self, directory: str | Path) -> None:
        """Raises UnreadableFileError if the directory holds no weights or the index is broken."""
        self._directory = Path(directory)
        self._headers: dict[Path, dict[str, tuple[Shape, str]]] = {}
        self._file_of: dict[str, Path]
        index, single = self._directory / INDEX_FILE, self._directory / SINGLE_FILE
        if index.exists():
            self._catalogue = index
            self._file_of = {name: self._directory / shard for name, shard in read_index(index).items()}
        elif single.exists():
            self._catalogue = single
            self._file_of = dict.fromkeys(self._header(single), single)
        else:
            raise UnreadableFileError(
                str(self._directory),
                f"holds no weights, expected {INDEX_FILE} with its shards, or {SINGLE_FILE}",
            )

    @property
    def names(self) -> Set[str]:
        return self._file_of.keys()

    @property
    def origin(self) -> str:
        return str(self._catalogue)

    def check(self, name: str, expected_shape: Shape, expected_dtype: str = FLOAT) -> TensorInfo:
        file = self._file(name)
        header = self._header(file)
        if name not in header:
            raise MissingTensorError(str(file), name)
        shape, dtype_name = header[name]
        if shape != expected_shape:
            raise TensorMismatchError(str(file), name, "shape", str(list(shape)), str(list(expected_shape)))
        allowed = _DTYPES[expected_dtype]
        if dtype_name not in allowed:
            raise TensorMismatchError(str(file), name, "dtype", dtype_name, " or ".join(allowed))
        return TensorInfo(shape=shape, dtype=allowed[dtype_name])

    def read(self, name: str, expected_shape: Shape, expected_dtype: str = FLOAT) -> torch.Tensor:
        self.check(name, expected_shape, expected_dtype)
        # Every tensor gets its own handle: then only the tensor keeps the mapping alive, and dropping the
        # tensor gives the pages back. A handle shared by a whole shard would keep them.
        file = self._file(name)
        tensor: torch.Tensor = _open(file, lambda handle: handle.get_tensor(name))
        return tensor

    def _file(self, name: str) -> Path:
        if name not in self._file_of:
            raise MissingTensorError(self.origin, name)
        return self._file_of[name]

    def _header(self, file: Path) -> dict[str, tuple[Shape, str]]:
        header = self._headers.get(file)
        if header is None:
            if not file.exists():
                raise UnreadableFileError(
                    str(file), f"does not exist, {self._catalogue.name} puts tensors there"
                )
            header = self._headers[file] = _open(file, _read_header)
        return header


def _read_header(handle: Any) -> dict[str, tuple[Shape, str]]:
    header: dict[str, tuple[Shape, str]] = {}
    for name in handle.keys():  # noqa: SIM118 (the handle is no mapping)
        entry = handle.get_slice(name)
        header[name] = (tuple(entry.get_shape()), entry.get_dtype())
    return header


def _open(file: Path, use: Callable[[Any], _T]) -> _T:
    """Open a safetensors file and return `use(handle)`; the handle's class is untyped.

    Opening checks that header and length agree. Raises UnreadableFileError.
    """
    try:
        with safe_open(str(file), framework="pt", device="cpu") as handle:
            return use(handle)
    except (SafetensorError, OSError) as error:
        raise UnreadableFileError(str(file), f"is truncated or no safetensors file ({error})") from error
