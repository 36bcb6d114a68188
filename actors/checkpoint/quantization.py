"""The kinds of quantization, and how config.json says that a checkpoint's experts are quantized.

Imports no torch. The format is that of compressed-tensors, which llm-compressor writes and vLLM reads:
`quantization_config` holds one group of symmetric weights, with one scale per output or one per group of an
output's inputs. The values are integers of 8 or 4 bits, or floating-point numbers of 8 bits. Only the
experts' matrices are quantized: attention, router and head must be listed in `ignore`.

    w1.weight_packed  int32 [F, H / (32 / bits)]   "pack-quantized": field i of a word holds
                                                   input i + 2^(bits - 1)
    w1.weight         int8 [F, H]                  "int-quantized", only with 8 bits
    w1.weight         float8_e4m3fn [F, H]         "float-quantized", or "naive-quantized", as
                                                   compressed-tensors calls it if only weights
                                                   are quantized
    w1.weight_scale   [F, H / group_size] or [F, 1]
    w1.weight_shape   int64 [2]                    "pack-quantized"
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from actors.checkpoint.fields import Fields

PACKED, INTEGERS, FLOATS, NAIVE = "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A way to quantize experts."""

    num_bits: int
    """8 or 4."""
    type: str
    """The type's name in compressed-tensors: "int", or "float" for float8_e4m3fn."""
    formats: tuple[str, ...]
    """Formats of compressed-tensors that can be read; we write checkpoints in the first."""
    group_sizes: tuple[int | None, ...]
    """Possible numbers of inputs that share a scale if we quantize; the first that divides the number of
    inputs of every matrix is used. None means all inputs of an output."""
    devices: tuple[str, ...]
    """Device types that can serve this kind."""

    @property
    def stored_dtype(self) -> str:
        """The name that safetensors uses for the dtype of values that are not packed."""
        return {"int": "I8", "float": "F8_E4M3"}[self.type]


KINDS = {
    "int8": Kind(
        num_bits=8, type="int", formats=(PACKED, INTEGERS), group_sizes=(64, 32), devices=("cpu", "cuda")
    ),
    "int4": Kind(num_bits=4, type="int", formats=(PACKED,), group_sizes=(32,), devices=("cpu",)),
    "fp8": Kind(num_bits=8, type="float", formats=(FLOATS, NAIVE), group_sizes=(None,), devices=("cuda",)),
}
"""All kinds by name; the setting `expert_quantization` is one of these names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredQuantization:
    """How a checkpoint's quantized experts are stored."""

    kind: str
    """One of KINDS."""
    group_size: int | None
    """Number of inputs that share a scale; None means all inputs of an output."""
    format: str
    """One of the kind's formats."""

    @property
    def num_bits(self) -> int:
        """8 or 4."""
        return KINDS[self.kind].num_bits

    @property
    def is_packed(self) -> bool:
        """Whether several values are packed into each word of 32 bits."""
        return self.format == PACKED


DENSE_DEVICES = ("cpu",)
"""Device types that can serve the projections of attention and the head quantized."""


def check_device(subject: str, devices: tuple[str, ...], device: str) -> None:
    """Raise ValueError, with `subject` as its first words, if the device type is not among `devices`."""
    if device not in devices:
        raise ValueError(f"{subject}, which needs device {' or '.join(devices)}, not {device}")


def group_size(
    kind: str, num_inputs: tuple[int, ...], device: str = "cpu", option: str = "expert_quantization"
) -> int | None:
    """Return how many inputs share a scale if we quantize matrices with these numbers of inputs.

    None means all inputs of an output. On CUDA the answer is always None: there a scale per group costs a
    good part of the speed that quantization brings. Raises ValueError if none of the kind's sizes divides all
    of `num_inputs`.
    """
    if device == "cuda":
        return None
    sizes = KINDS[kind].group_sizes
    for size in sizes:
        if size is None or all(number % size == 0 for number in num_inputs):
            return size
    raise ValueError(
        f"{option} is {kind!r}, but its matrices have {' and '.join(map(str, num_inputs))} inputs, expected "
        f"multiples of {sizes[-1]}"
    )


def new_storage(kind: str, num_inputs: tuple[int, int]) -> StoredQuantization:
    """Return how experts that we quantize are stored. Raises ValueError as `group_size` does."""
    return StoredQuantization(
        kind=kind, group_size=group_size(kind, num_inputs), format=KINDS[kind].formats[0]
    )


def read_quantization(fields: Fields, num_inputs: tuple[int, int]) -> StoredQuantization | None:
    """Read `quantization_config` of config.json; return None if there is none.

    `num_inputs` belong to w1 and w2.

    Raises ConfigError, which names the key, for every value that cannot be served.
    """
    if not fields.has("quantization_config"):
        return None
    section = fields.section("quantization_config")
    if section.text("quant_method") != "compressed-tensors":
        raise section.error("quant_method", '"compressed-tensors"')
    layout = section.text("format")
    formats = dict.fromkeys(name for kind in KINDS.values() for name in kind.formats)
    if layout not in formats:
        raise section.error("format", _either(formats))
    if section.has("quantization_status") and section.text("quantization_status") != "compressed":
        raise section.error("quantization_status", '"compressed"')
    if section.has("kv_cache_scheme"):
        raise section.error("kv_cache_scheme", "null (keys and values are not quantized)")
    for key in ("sparsity_config", "transform_config"):
        if section.has(key) and not section.section(key).is_empty:
            raise section.error(key, "null or {}")
    groups = section.section("config_groups")
    names = groups.keys
    if len(names) != 1:
        raise section.error("config_groups", "one group, the experts'", f"{len(names)} groups")
    return _read_group(groups.section(names[0]), layout, num_inputs)


def _read_group(group: Fields, layout: str, num_inputs: tuple[int, int]) -> StoredQuantization:
    group.texts("targets")
    if group.has("format") and group.text("format") != layout:
        raise group.error("format", f'"{layout}", as quantization_config.format says')
    for key in ("input_activations", "output_activations"):
        if group.has(key):
            raise group.error(key, "null (weights alone are quantized)")
    weights = group.section("weights")
    kind = _read_kind(weights, layout)
    if not weights.flag("symmetric", True):
        raise weights.error("symmetric", "true")
    if weights.flag("dynamic", False):
        raise weights.error("dynamic", "false")
    if weights.has("actorder") and weights.text("actorder") not in ("weight", "static"):
        raise weights.error("actorder", 'null, "weight" or "static" (inputs in their order)')
    strategy = weights.text("strategy")
    if strategy not in ("group", "channel"):
        raise weights.error("strategy", '"group" or "channel"')
    size = weights.positive_int("group_size") if strategy == "group" else None
    if size is not None and (size % 32 or any(number % size for number in num_inputs)):
        raise weights.error(
            "group_size",
            f"a multiple of 32 that divides hidden_size {num_inputs[0]} "
            f"and intermediate_size {num_inputs[1]}",
        )
    return StoredQuantization(kind=kind, group_size=size, format=layout)


def _read_kind(weights: Fields, layout: str) -> str:
    """Return the name in KINDS of the kind that has this format, type and num_bits."""
    kinds = {name: kind for name, kind in KINDS.items() if layout in kind.formats}
    types = dict.fromkeys(kind.type for kind in kinds.values())
    if weights.text("type") not in types:
        raise weights.error("type", f'{_either(types)} with format "{layout}"')
    by_bits = {kind.num_bits: name for name, kind in kinds.items() if kind.type == weights.text("type")}
    if weights.positive_int("num_bits") not in by_bits:
        raise weights.error("num_bits", f'{" or ".join(map(str, sorted(by_bits)))} with format "{layout}"')
    return by_bits[weights.positive_int("num_bits")]


def _either(names: Iterable[str]) -> str:
    """Return the names as a phrase, for example '"a", "b" or "c"'."""
    *others, last = (f'"{name}"' for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def quantization_config(stored: StoredQuantization) -> dict[str, object]:
    """Return the section of config.json from which `read_quantization` reads the same `stored`."""
    weights: dict[str, object] = {
        "num_bits": stored.num_bits,
        "type": KINDS[stored.kind].type,
        "symmetric": True,
        "group_size": stored.group_size,
        "strategy": "channel" if stored.group_size is None else "group",
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": stored.format,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": stored.format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*block_sparse_moe.gate$"],
        "kv_cache_scheme": None,
    }
