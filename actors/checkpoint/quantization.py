"""How a checkpoint or an order says that the experts' matrices are of few bits. Imports no torch.

A checkpoint says it in config.json, in the way of compressed-tensors (as llm-compressor and vLLM write and read it):
`quantization_config` with one group of weights, symmetric integers of 8 or 4 bits, with a scale for every output or for
every so many inputs of it. The experts' matrices alone are quantized: attention, router and head must be among `ignore`.

    w1.weight_packed  int32 [F, H / (32 / bits)]   "pack-quantized": field i of a word is input i, plus 2^(bits - 1)
    w1.weight         int8 [F, H]                  "int-quantized", 8 bits alone
    w1.weight_scale   [F, H / group_size] or [F, 1]
    w1.weight_shape   int64 [2]                    "pack-quantized"
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.checkpoint.fields import Fields

KINDS = ("int8", "int4")
"""What experts can be quantized to: integers with a scale per group of inputs."""

PACKED, UNPACKED = "pack-quantized", "int-quantized"

GROUP_SIZES = {"int8": (64, 32), "int4": (32,)}
"""Inputs that share a scale, where experts are quantized here: the first that divides all numbers of inputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredQuantization:
    """What a checkpoint's experts are stored as."""

    num_bits: int
    """8 or 4."""
    group_size: int | None
    """Inputs that share a scale; None is all of an output's."""
    is_packed: bool
    """"pack-quantized", else "int-quantized"."""

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return f"int{self.num_bits}"


def group_size(kind: str, num_inputs: tuple[int, int]) -> int:
    """Inputs that share a scale where experts with so many are quantized.

    Raises ValueError for numbers of inputs that none of GROUP_SIZES divides.
    """
    for size in GROUP_SIZES[kind]:
        if all(number % size == 0 for number in num_inputs):
            return size
    raise ValueError(
        f"expert_quantization is {kind!r}, but hidden_size and intermediate_size are {num_inputs[0]} and "
        f"{num_inputs[1]}, expected multiples of {GROUP_SIZES[kind][-1]}"
    )


def new_storage(kind: str, num_inputs: tuple[int, int]) -> StoredQuantization:
    """How experts are stored that are quantized here. Raises ValueError as `group_size` does."""
    return StoredQuantization(
        num_bits=int(kind.removeprefix("int")), group_size=group_size(kind, num_inputs), is_packed=True
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
    if layout not in (PACKED, UNPACKED):
        raise section.error("format", f'"{PACKED}" or "{UNPACKED}"')
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
    if weights.text("type") != "int":
        raise weights.error("type", '"int"')
    allowed = (4, 8) if layout == PACKED else (8,)
    if weights.positive_int("num_bits") not in allowed:
        raise weights.error("num_bits", " or ".join(map(str, allowed)) + f' with format "{layout}"')
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
    return StoredQuantization(
        num_bits=weights.positive_int("num_bits"), group_size=size, is_packed=layout == PACKED
    )


def quantization_config(stored: StoredQuantization) -> dict[str, object]:
    """The section that `read_quantization` reads the same from."""
    layout = PACKED if stored.is_packed else UNPACKED
    weights: dict[str, object] = {
        "num_bits": stored.num_bits,
        "type": "int",
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
        "format": layout,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*block_sparse_moe.gate$"],
        "kv_cache_scheme": None,
    }
