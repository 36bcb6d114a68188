"""How a checkpoint or an order says that the experts' matrices are of few bits. Imports no torch.

A checkpoint says it in config.json, in the way of compressed-tensors (as llm-compressor and vLLM write and read it):
`quantization_config` with one group of weights, symmetric, with a scale for every output or for every so many inputs of
it: integers of 8 or 4 bits, or floating-point numbers of 8. The experts' matrices alone are quantized: attention, router
and head must be among `ignore`.

    w1.weight_packed  int32 [F, H / (32 / bits)]   "pack-quantized": field i of a word is input i, plus 2^(bits - 1)
    w1.weight         int8 [F, H]                  "int-quantized", 8 bits alone
    w1.weight         float8_e4m3fn [F, H]         "float-quantized"; "naive-quantized", as compressed-tensors itself
                                                   calls it where weights alone are quantized
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
    """Something that experts can be quantized to."""

    num_bits: int
    """8 or 4."""
    type: str
    """As compressed-tensors names it: "int", or "float" for float8_e4m3fn."""
    formats: tuple[str, ...]
    """Those it is read in; experts that are quantized here are written in the first."""
    group_sizes: tuple[int | None, ...]
    """Inputs that share a scale, where experts are quantized here: the first that divides all numbers of inputs. None is
    all of an output's."""
    devices: tuple[str, ...]
    """Types of the devices that serve it."""

    @property
    def stored_dtype(self) -> str:
        """safetensors' name for that of values that are not packed."""
        return {"int": "I8", "float": "F8_E4M3"}[self.type]


KINDS = {
    "int8": Kind(
        num_bits=8, type="int", formats=(PACKED, INTEGERS), group_sizes=(64, 32), devices=("cpu", "cuda")
    ),
    "int4": Kind(num_bits=4, type="int", formats=(PACKED,), group_sizes=(32,), devices=("cpu",)),
    "fp8": Kind(num_bits=8, type="float", formats=(FLOATS, NAIVE), group_sizes=(None,), devices=("cuda",)),
}
"""All there are, by name. A name is what `expert_quantization` says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredQuantization:
    """What a checkpoint's experts are stored as."""

    kind: str
    """One of KINDS."""
    group_size: int | None
    """Inputs that share a scale; None is all of an output's."""
    format: str
    """One of the kind's."""

    @property
    def num_bits(self) -> int:
        """8 or 4."""
        return KINDS[self.kind].num_bits

    @property
    def is_packed(self) -> bool:
        """Whether values lie in words of 32 bits, else they are numbers of their own."""
        return self.format == PACKED


DENSE_DEVICES = ("cpu",)
"""Types of the devices that serve attention's projections and the head in few bits."""


def check_device(subject: str, devices: tuple[str, ...], device: str) -> None:
    """Raises ValueError where a device of this type ("cpu", "cuda") is none of these; `subject` says what needs one."""
    if device not in devices:
        raise ValueError(f"{subject}, which needs device {' or '.join(devices)}, not {device}")


def group_size(
    kind: str, num_inputs: tuple[int, ...], device: str = "cpu", option: str = "expert_quantization"
) -> int | None:
    """Inputs that share a scale where matrices with so many are quantized; None is all of an output's.

    To serve from CUDA it is always all of them: there a scale per group costs a good part of the speed that few bits bring.
    Raises ValueError for numbers of inputs that none of the kind's sizes divides.
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
    """How experts are stored that are quantized here. Raises ValueError as `group_size` does."""
    return StoredQuantization(
        kind=kind, group_size=group_size(kind, num_inputs), format=KINDS[kind].formats[0]
    )


def read_quantization(fields: Fields, num_inputs: tuple[int, int]) -> StoredQuantization | None:
    """`quantization_config` of config.json, None where there is none. `num_inputs` are those of w1 and w2.

    Raises ConfigError for everything that is not served, naming the key.
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
            f"a multiple of 32 that divides hidden_size {num_inputs[0]} and intermediate_size {num_inputs[1]}",
        )
    return StoredQuantization(kind=kind, group_size=size, format=layout)


def _read_kind(weights: Fields, layout: str) -> str:
    """The one of KINDS that has this format, type and num_bits."""
    kinds = {name: kind for name, kind in KINDS.items() if layout in kind.formats}
    types = dict.fromkeys(kind.type for kind in kinds.values())
    if weights.text("type") not in types:
        raise weights.error("type", f'{_either(types)} with format "{layout}"')
    by_bits = {kind.num_bits: name for name, kind in kinds.items() if kind.type == weights.text("type")}
    if weights.positive_int("num_bits") not in by_bits:
        raise weights.error("num_bits", f'{" or ".join(map(str, sorted(by_bits)))} with format "{layout}"')
    return by_bits[weights.positive_int("num_bits")]


def _either(names: Iterable[str]) -> str:
    """ "a", "b" or "c"."""
    *others, last = (f'"{name}"' for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def quantization_config(stored: StoredQuantization) -> dict[str, object]:
    """The section that `read_quantization` reads the same from."""
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
