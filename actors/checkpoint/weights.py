"""Reads an actor's weights, the dense part of the model or single experts, and checks and converts them.

Legend: V vocabulary, H hidden, E experts, F expert width, D kv_heads * head_dim.

Dense weights are copied into memory of their own. An expert on the CPU in its stored dtype is mapped from its
file (`actors.checkpoint.reader`), since the expert actor repacks it at once. A caller that packs one expert
and drops it before it asks for the next needs, at its peak, the memory of the packed weights plus one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.layout import (
    EMBED,
    FINAL_NORM,
    LM_HEAD,
    Shape,
    dense_layer_tensors,
    dense_tensors,
    expert_matrices,
    layer_prefix,
    stored_parts,
)
from actors.checkpoint.reader import CheckpointReader, TensorInfo, WeightReader
from actors.errors import ConfigError

__all__ = [
    "CheckpointReader",
    "DenseWeights",
    "ExpertWeights",
    "LayerWeights",
    "Linear",
    "Norm",
    "ProgressCallback",
    "TensorInfo",
    "WeightReader",
    "read_dense",
    "read_expert",
    "read_experts",
    "serving_dtype",
    "validate_dense",
    "validate_experts",
]

ProgressCallback = Callable[[int, int], None]
"""Called with (bytes_done, bytes_total), first with (0, total), then after each tensor or expert. The bytes
are counted as stored."""


class Linear(NamedTuple):
    """y = x @ weight.T + bias."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class Norm(NamedTuple):
    """LayerNorm's scale and shift, both [H]."""

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerWeights:
    """One layer without its experts."""

    input_norm: Norm
    q: Linear
    """[H, H]"""
    k: Linear
    """[D, H]"""
    v: Linear
    """[D, H]"""
    o: Linear
    """[H, H]"""
    post_attention_norm: Norm
    gate: torch.Tensor
    """[E, H]"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DenseWeights:
    """Everything but the experts."""

    embed: torch.Tensor
    """[V, H]"""
    layers: tuple[LayerWeights, ...]
    norm: Norm
    lm_head: Linear
    """[V, H]; the same tensor as `embed` if the model ties the two."""


class ExpertWeights(NamedTuple):
    """One expert of one layer: w2 @ (silu(w1 @ x) * (w3 @ x))."""

    w1: torch.Tensor
    """The gate's matrix [F, H]."""
    w3: torch.Tensor
    """The up matrix [F, H]."""
    w2: torch.Tensor
    """The down matrix [H, F]."""


def serving_dtype(asked: str, config: ModelConfig) -> torch.dtype:
    """Return the dtype `asked`, or for "auto" the config's stored dtype (float32 if it names none).

    The result depends on the config alone, so that all actors choose the same dtype. Raises ValueError for an
    unknown name.
    """
    name = (config.stored_dtype or "float32") if asked == "auto" else asked
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if name not in dtypes:
        raise ValueError(f"dtype is {asked!r}, expected auto or one of {', '.join(dtypes)}")
    return dtypes[name]


def validate_dense(reader: WeightReader, config: ModelConfig) -> int:
    """Check presence, shape and dtype of every dense tensor without reading any; return their stored bytes.

    Raises CheckpointError, also if the files hold biases that the model does not have according to its
    config: leaving them out silently would serve a different model.
    """
    if config.stored_quantization is not None:
        _check_unquantized(reader, config)
    num_bytes = sum(reader.check(name, shape).num_bytes for name, shape in dense_tensors(config).items())
    bias_of = {
        "attention_bias": f"{layer_prefix(0)}self_attn.q_proj.bias",
        "lm_head_bias": f"{LM_HEAD}.bias",
    }
    for key, tensor in bias_of.items():
        if tensor in reader.names and not getattr(config, key):
            raise ConfigError(reader.origin, key, "false", f"true, since there is a tensor {tensor}")
    return num_bytes


def validate_experts(reader: WeightReader, config: ModelConfig, experts: Sequence[int]) -> int:
    """Check these experts' tensors in all layers without reading any; return their stored bytes.

    Raises CheckpointError.
    """
    num_bytes = 0
    for layer in range(config.num_layers):
        for expert in experts:
            for matrix, matrix_shape in expert_matrices(config, layer, expert).items():
                parts = stored_parts(config, matrix, matrix_shape)
                if f"{matrix}_g_idx" in reader.names:
                    key = "quantization_config.config_groups.weights.actorder"
                    found = f"applied to a tensor, since there is {matrix}_g_idx"
                    raise ConfigError(reader.origin, key, found, "null (inputs in their order)")
                num_bytes += sum(reader.check(name, *part).num_bytes for name, part in parts.items())
    return num_bytes


def read_dense(
    reader: WeightReader,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
) -> DenseWeights:
    """Validate the dense part, then read it into memory of its own. Raises CheckpointError."""
    meter = Meter(validate_dense(reader, config), progress)

    def load(name: str, shape: Shape) -> torch.Tensor:
        mapped = reader.read(name, shape)
        owned = mapped.to(device=device, dtype=dtype, copy=True)
        meter.add(mapped.nbytes)
        return owned

    embed = load(EMBED, dense_tensors(config)[EMBED])
    layers = tuple(_read_layer(config, layer, load) for layer in range(config.num_layers))
    hidden, vocab = config.hidden_size, config.vocab_size
    return DenseWeights(
        embed=embed,
        layers=layers,
        norm=Norm(load(f"{FINAL_NORM}.weight", (hidden,)), load(f"{FINAL_NORM}.bias", (hidden,))),
        lm_head=Linear(
            embed if config.tie_word_embeddings else load(f"{LM_HEAD}.weight", (vocab, hidden)),
            load(f"{LM_HEAD}.bias", (vocab,)) if config.lm_head_bias else None,
        ),
    )


def read_experts(
    reader: WeightReader,
    config: ModelConfig,
    experts: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
) -> Iterator[tuple[int, int, ExpertWeights]]:
    """Validate these experts, then yield (layer, expert, weights) layer by layer, experts in the order given.

    Progress counts an expert when the caller asks for the next one, which means that the caller is done with
    it. The caller must keep no reference to an expert's tensors after that, or their file pages stay in this
    process's memory. Experts that are stored quantized cannot be read this way. Raises CheckpointError.
    """
    meter = Meter(validate_experts(reader, config, experts), progress)
    for layer in range(config.num_layers):
        for expert in experts:
            weights = read_expert(reader, config, layer, expert)
            num_bytes = sum(weight.nbytes for weight in weights)
            weights = ExpertWeights(*(weight.to(device=device, dtype=dtype) for weight in weights))
            yield layer, expert, weights
            del weights
            meter.add(num_bytes)


def read_expert(reader: WeightReader, config: ModelConfig, layer: int, expert: int) -> ExpertWeights:
    """Return one expert as stored, from `reader`; callers must not write to it. Raises CheckpointError."""
    assert config.stored_quantization is None
    w1, w3, w2 = (reader.read(name, shape) for name, shape in expert_matrices(config, layer, expert).items())
    return ExpertWeights(w1, w3, w2)


def _check_unquantized(reader: WeightReader, config: ModelConfig) -> None:
    for name in dense_tensors(config):
        for part in (f"{name}_packed", f"{name}_scale"):
            if part in reader.names:
                found = f"without {name.removesuffix('.weight')}, since there is a tensor {part}"
                raise ConfigError(
                    reader.origin, "quantization_config.ignore", found, "all but the experts' matrices"
                )


def _read_layer(config: ModelConfig, layer: int, load: Callable[[str, Shape], torch.Tensor]) -> LayerWeights:
    prefix = layer_prefix(layer)
    shapes = {name.removeprefix(prefix): shape for name, shape in dense_layer_tensors(config, layer).items()}

    def at(name: str) -> torch.Tensor:
        return load(prefix + name, shapes[name])

    def norm(name: str) -> Norm:
        return Norm(at(f"{name}.weight"), at(f"{name}.bias"))

    def linear(name: str) -> Linear:
        bias = f"self_attn.{name}_proj.bias"
        return Linear(at(f"self_attn.{name}_proj.weight"), at(bias) if bias in shapes else None)

    return LayerWeights(
        input_norm=norm("input_layernorm"),
        q=linear("q"),
        k=linear("k"),
        v=linear("v"),
        o=linear("o"),
        post_attention_norm=norm("post_attention_layernorm"),
        gate=at("block_sparse_moe.gate.weight"),
    )


class Meter:
    """Reports bytes to a progress callback: (0, total) at once, then the sum after each `add`."""

    def __init__(self, total_bytes: int, report: ProgressCallback | None) -> None:
        self._done_bytes = 0
        self._total_bytes = total_bytes
        self._report = report
        self.add(0)

    def add(self, num_bytes: int) -> None:
        self._done_bytes += num_bytes
        if self._report is not None:
            self._report(self._done_bytes, self._total_bytes)
