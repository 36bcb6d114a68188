"""Writes checkpoint directories, and copies them with quantized experts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from actors.checkpoint.config import CONFIG_FILE, ModelConfig
from actors.checkpoint.download import SMALL_FILES
from actors.checkpoint.fields import read_json_object
from actors.checkpoint.index import INDEX_FILE
from actors.checkpoint.layout import all_tensors, expert_tensor_names, layer_prefix
from actors.checkpoint.quantization import StoredQuantization, new_storage, quantization_config
from actors.checkpoint.quantized_weight import quantize, stored_tensors
from actors.checkpoint.reader import CheckpointReader, WeightReader
from actors.checkpoint.weights import ProgressCallback, validate_dense, validate_experts


def quantize_checkpoint(
    source: str | Path, out_dir: str | Path, quantization: str, progress: ProgressCallback | None = None
) -> None:
    """Copy a checkpoint with its experts quantized to one of KINDS; everything else stays the same.

    Raises CheckpointError, ValueError if the checkpoint is already quantized or its shapes cannot be
    quantized, and FileExistsError if the directory is not empty.
    """
    source = Path(source).expanduser()
    config, reader = ModelConfig.from_directory(source), CheckpointReader(source)
    if config.stored_quantization is not None:
        raise ValueError(f"the experts of {source} are stored as {config.stored_quantization.kind} already")
    validate_dense(reader, config)
    validate_experts(reader, config, range(config.num_experts))
    directory = empty_directory(out_dir)
    storage = declare_quantized(source, directory, config, quantization)
    for name in SMALL_FILES:
        if name not in (INDEX_FILE, CONFIG_FILE) and (source / name).exists():
            shutil.copyfile(source / name, directory / name)
    write_weights(config, reader, directory, progress, storage)


def declare_quantized(
    source: Path, directory: Path, config: ModelConfig, quantization: str
) -> StoredQuantization:
    """Write the source's config.json, with a `quantization_config` added, into the directory.

    Raises ValueError for shapes that cannot be quantized.
    """
    storage = new_storage(quantization, (config.hidden_size, config.intermediate_size))
    content = read_json_object(source / CONFIG_FILE) | {"quantization_config": quantization_config(storage)}
    (directory / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return storage


def empty_directory(out_dir: str | Path) -> Path:
    """Return the directory, created if it does not exist. Raises FileExistsError if it is not empty."""
    directory = Path(out_dir).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty")
    return directory


def write_weights(
    config: ModelConfig,
    reader: WeightReader,
    directory: Path,
    progress: ProgressCallback | None = None,
    storage: StoredQuantization | None = None,
) -> None:
    """Write one shard for embedding, final norm and head, one per layer, and then the index.

    Only one shard at a time is in memory. If `storage` is given, experts are quantized as it says. Progress
    is counted in bytes read.
    """
    shapes = all_tensors(config)
    total_bytes = sum(reader.check(name, shape).num_bytes for name, shape in shapes.items())
    matrices = expert_tensor_names(config, range(config.num_experts)) if storage is not None else frozenset()
    shards = list(_shard_names(config))
    weight_map: dict[str, str] = {}
    read_bytes = written_bytes = 0
    for number, names in enumerate(shards, 1):
        if progress is not None:
            progress(read_bytes, total_bytes)
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            tensor = reader.read(name, shapes[name])
            read_bytes += tensor.nbytes
            tensors |= _quantized(name, tensor, storage) if storage and name in matrices else {name: tensor}
        save_file(tensors, str(directory / file), metadata={"format": "pt"})
        written_bytes += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": written_bytes}, "weight_map": weight_map}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    if progress is not None:
        progress(read_bytes, total_bytes)


def _quantized(name: str, weight: torch.Tensor, storage: StoredQuantization) -> Mapping[str, torch.Tensor]:
    return stored_tensors(name, quantize(weight, storage.kind, storage.group_size), storage)


def _shard_names(config: ModelConfig) -> Iterator[list[str]]:
    names = all_tensors(config).keys()
    yield [name for name in names if not name.startswith("model.layers.")]
    for layer in range(config.num_layers):
        yield [name for name in names if name.startswith(layer_prefix(layer))]
