"""Single experts of few bits: read from a checkpoint that holds such, or quantized from whole ones as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.layout import Shape, expert_matrices, stored_parts
from actors.checkpoint.quantization import DENSE_DEVICES, KINDS, check_device, group_size
from actors.checkpoint.quantized_weight import QuantizedExpert, QuantizedWeight, from_words, quantize
from actors.checkpoint.reader import WeightReader
from actors.checkpoint.weights import Meter, ProgressCallback, read_expert, validate_experts
from actors.devices import has_fp8, has_triton
from actors.errors import TensorMismatchError


def serving_quantization(asked: str | None, config: ModelConfig, device: torch.device) -> str | None:
    """What the experts are served as: one of KINDS, or None for the model's dtype. `asked` of None is as stored.

    Raises ValueError for what the checkpoint, the device or the model's shape does not allow.
    """
    stored = config.stored_quantization
    kind = asked if stored is None else stored.kind
    if kind is None:
        return None
    subject = (
        f"expert_quantization is {asked!r}" if stored is None else f"the experts are stored as {stored.kind}"
    )
    check_device(subject, KINDS[kind].devices, device.type)
    if device.type == "cuda" and not has_triton(device):
        raise ValueError(
            f"{subject}, which device cuda serves with Triton alone: expected triton to be installed, and a GPU of "
            f"compute capability 8.0 or more"
        )
    if kind == "fp8" and not has_fp8(device):
        raise ValueError(f"{subject}, which needs a GPU of compute capability 8.9 or more")
    if stored is None:
        group_size(kind, (config.hidden_size, config.intermediate_size), device.type)
    elif asked not in (None, kind):
        raise ValueError(
            f"expert_quantization is {asked!r}, but the checkpoint's experts are stored as {kind}: leave it out"
        )
    return kind


def dense_quantization(asked: str | None, config: ModelConfig, device: torch.device) -> str | None:
    """What attention's projections and the head are served as: one of KINDS, or None for the model's dtype.

    Raises ValueError for what the device or the model's shape does not allow.
    """
    if asked is None:
        return None
    option = "dense_quantization"
    check_device(f"{option} is {asked!r}", DENSE_DEVICES, device.type)
    group_size(asked, (config.hidden_size, config.num_heads * config.head_dim), option=option)
    return asked


def read_quantized_experts(
    reader: WeightReader,
    config: ModelConfig,
    experts: Sequence[int],
    kind: str,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
) -> Iterator[tuple[int, int, QuantizedExpert]]:
    """As `read_experts`, in the kind that `serving_quantization` says; on a CPU they may still be mapped, too.

    What is stored whole is moved to the device first and quantized there.
    """
    meter = Meter(validate_experts(reader, config, experts), progress)
    for layer in range(config.num_layers):
        for expert in experts:
            matrices = expert_matrices(config, layer, expert)
            if config.stored_quantization is None:
                num_bytes, weights = _quantize_expert(reader, config, (layer, expert), kind, device)
            else:
                stored = [_read(reader, config, name, shape, device) for name, shape in matrices.items()]
                num_bytes = sum(weight.nbytes for weight in stored)
                weights = QuantizedExpert(*stored)
                del stored
            yield layer, expert, weights
            del weights
            meter.add(num_bytes)


def _quantize_expert(
    reader: WeightReader, config: ModelConfig, place: tuple[int, int], kind: str, device: torch.device | str
) -> tuple[int, QuantizedExpert]:
    """Its stored bytes, and the expert."""
    whole = read_expert(reader, config, *place)
    num_bytes = sum(weight.nbytes for weight in whole)
    size = group_size(kind, (config.hidden_size, config.intermediate_size), torch.device(device).type)
    return num_bytes, QuantizedExpert(*(quantize(weight.to(device), kind, size) for weight in whole))


def _read(
    reader: WeightReader, config: ModelConfig, name: str, shape: Shape, device: torch.device | str
) -> QuantizedWeight:
    stored = config.stored_quantization
    assert stored is not None
    parts = stored_parts(config, name, shape)
    values, scales, *rest = (reader.read(part, *expected) for part, expected in parts.items())
    if rest and rest[0].tolist() != list(shape):
        found = str(rest[0].tolist())
        raise TensorMismatchError(reader.origin, f"{name}_shape", "content", found, str(list(shape)))
    values, scales = values.to(device), scales.to(device)
    if stored.is_packed:
        values = from_words(values, stored.num_bits, shape[1])
    # float32 holds what bfloat16 would round.
    return QuantizedWeight(
        values, scales if scales.dtype == torch.bfloat16 else scales.float(), stored.num_bits
    )
