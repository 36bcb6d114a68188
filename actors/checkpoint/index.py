"""Reads model.safetensors.index.json, which says which shard file holds which tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from actors.checkpoint.fields import read_json_object, show
from actors.errors import MissingTensorError, UnreadableFileError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

# A plain file name without folders and pattern characters. The index comes from outside and names files that
# we open and download.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors")


def read_index(path: Path) -> dict[str, str]:
    """Return tensor name -> shard file name. Raises UnreadableFileError if the file holds no such map."""
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnreadableFileError(
            str(path), f"weight_map is {show(weight_map)}, expected a map of tensors to files"
        )
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise UnreadableFileError(
                str(path),
                f"puts tensor {tensor} into {show(shard)}, expected the name of a .safetensors file",
            )
    return weight_map


def shards_of(weight_map: Mapping[str, str], tensors: Iterable[str], index_path: Path) -> tuple[str, ...]:
    """Return the shard files that hold these tensors, ascending.

    Raises MissingTensorError for an unknown tensor.
    """
    wanted = sorted(tensors)
    for tensor in wanted:
        if tensor not in weight_map:
            raise MissingTensorError(str(index_path), tensor)
    return tuple(sorted({weight_map[tensor] for tensor in wanted}))
