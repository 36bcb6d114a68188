"""Reads quantized experts one by one, and quantizes experts that are not stored quantized."""

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
    """Return the kind in which the experts are served, one of KINDS, or None for the model's dtype.

    With `asked` None the experts are served as they are stored. Raises ValueError if the checkpoint, the
    device or the model's shape does not allow what is asked.
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
            f"{subject}, which device cuda serves with Triton alone: expected triton to be installed, "
            f"and a GPU of compute capability 8.0 or more"
        )
    if kind == "fp8" and not has_fp8(device):
        raise ValueError(f"{subject}, which needs a GPU of compute capability 8.9 or more")
    if stored is None:
        group_size(kind, (config.hidden_size, config.intermediate_size), device.type)
    elif asked not in (None, kind):
        raise ValueError(
            f"expert_quantization is {asked!r}, but the checkpoint's experts are stored as {kind}: "
            f"leave the setting out"
        )
    return kind


def dense_quantization(asked: str | None, config: ModelConfig, device: torch.device) -> str | None:
    """Return the kind of attention's projections and of the head, or None for the model's dtype.

    Raises ValueError if the device or the model's shape does not allow what is asked.
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
    """Yield (layer, expert, weights) as `read_experts` does, quantized to `kind`.

    On a CPU the weights may still be mapped from the file. Experts that are not stored quantized are moved to
    the device first and quantized there.
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
    """Read and quantize the expert at `place` (layer, expert); return its stored bytes and the expert."""
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
    # Scales stored as float16 or float32 become float32, since bfloat16 would round them.
    return QuantizedWeight(
        values, scales if scales.dtype == torch.bfloat16 else scales.float(), stored.num_bits
    )
