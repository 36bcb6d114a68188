"""Checkpoints whose experts are quantized: written, read again, and refused where they are something else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.download import embedded_directory
from actors.checkpoint.quantization import StoredQuantization, quantization_config
from actors.checkpoint.quantized import QuantizedExpert, dequantize, quantize
from actors.checkpoint.read_quantized import read_quantized_experts, serving_quantization
from actors.checkpoint.reader import CheckpointReader
from actors.checkpoint.weights import read_dense, read_expert, validate_dense, validate_experts
from actors.checkpoint.write import quantize_checkpoint
from actors.errors import ConfigError, MissingTensorError, TensorMismatchError
from cluster.__main__ import main

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["int8", "int4"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def directory(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with its experts quantized."""
    out_dir = tmp_path_factory.mktemp("model")
    quantize_checkpoint(embedded_directory(), out_dir, kind)
    return out_dir


def read(
    directory: Path, kind: str, experts: tuple[int, ...] = (0, 9)
) -> dict[tuple[int, int], QuantizedExpert]:
    config = ModelConfig.from_directory(directory)
    stream = read_quantized_experts(CheckpointReader(directory), config, experts, kind)
    return {(layer, expert): weights for layer, expert, weights in stream}


def test_what_is_written_is_what_quantizing_at_load_gives(directory: Path, kind: str) -> None:
    stored, at_load = read(directory, kind), read(embedded_directory(), kind)
    assert stored.keys() == at_load.keys()
    for place, weights in stored.items():
        for ours, theirs in zip(weights, at_load[place], strict=True):
            assert torch.equal(ours.values, theirs.values)
            assert torch.equal(ours.scales, theirs.scales)
            assert ours.num_bits == theirs.num_bits == int(kind.removeprefix("int"))
    original = read_expert(
        CheckpointReader(embedded_directory()), ModelConfig.from_directory(embedded_directory()), 1, 9
    )
    error = (dequantize(stored[1, 9].w2) - original.w2.float()).norm() / original.w2.float().norm()
    assert error < (0.01 if kind == "int8" else 0.12)


def test_everything_else_is_copied(directory: Path) -> None:
    config, reader = ModelConfig.from_directory(directory), CheckpointReader(directory)
    before = ModelConfig.from_directory(embedded_directory())
    written = read_dense(reader, config, torch.bfloat16)
    original = read_dense(CheckpointReader(embedded_directory()), before, torch.bfloat16)
    assert torch.equal(written.lm_head.weight, original.lm_head.weight)
    assert torch.equal(written.layers[2].gate, original.layers[2].gate)
    assert (directory / "tokenizer.json").read_bytes() == (
        embedded_directory() / "tokenizer.json"
    ).read_bytes()
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    total = validate_dense(reader, config) + validate_experts(reader, config, range(16))
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize("num_bits", [8, 4])
@pytest.mark.parametrize("group_size", [32, 64, None])
def test_a_config_is_read_as_it_was_written(num_bits: int, group_size: int | None) -> None:
    stored = StoredQuantization(num_bits=num_bits, group_size=group_size, is_packed=True)
    assert config_with(quantization_config(stored)).stored_quantization == stored


def test_unpacked_values_of_8_bits_are_read(tmp_path: Path) -> None:
    stored = StoredQuantization(num_bits=8, group_size=None, is_packed=False)
    content = raw_config() | {"quantization_config": quantization_config(stored)}
    (tmp_path / "config.json").write_text(json.dumps(content))
    tensors = load_file(embedded_directory() / "model.safetensors")
    for name in [name for name in tensors if ".experts." in name]:
        weight = quantize(tensors[name], "int8", tensors[name].shape[1])
        tensors |= {name: weight.values, f"{name}_scale": weight.scales.half()}
    save_file(tensors, tmp_path / "model.safetensors")
    weights = read(tmp_path, "int8")[2, 9]
    assert weights.w1.values.dtype == torch.int8
    assert weights.w1.scales.dtype == torch.float32
    original = load_file(embedded_directory() / "model.safetensors")[
        "model.layers.2.block_sparse_moe.experts.9.w1.weight"
    ].float()
    assert (dequantize(weights.w1) - original).norm() < 0.02 * original.norm()


def raw_config() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((embedded_directory() / "config.json").read_text())
    return content


def config_with(section: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_dict(raw_config() | {"quantization_config": section})


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (
            "quant_method",
            "gptq",
            r'quantization_config.quant_method is "gptq", expected "compressed-tensors"',
        ),
        ("quant_method", "awq", r'quantization_config.quant_method is "awq"'),
        ("quant_method", None, r"quantization_config.quant_method is missing, expected a string"),
        ("format", "float-quantized", r'format is "float-quantized", expected "pack-quantized" or'),
        ("quantization_status", "frozen", r'quantization_status is "frozen", expected "compressed"'),
        ("kv_cache_scheme", {"num_bits": 8}, "kv_cache_scheme is .*keys and values are"),
        ("sparsity_config", {"format": "sparse-24"}, "quantization_config.sparsity_config is"),
        ("transform_config", {"config_groups": {}}, "quantization_config.transform_config is"),
        ("config_groups", {}, "config_groups is 0 groups, expected one group"),
        ("config_groups", [], r"config_groups is \[\], expected an object"),
        (
            "config_groups.group_0.targets",
            "Linear",
            'group_0.targets is "Linear", expected a list of strings',
        ),
        (
            "config_groups.group_0.format",
            "int-quantized",
            "group_0.format is .* as quantization_config.format",
        ),
        ("config_groups.group_0.input_activations", {"num_bits": 8}, "input_activations is .* expected null"),
        ("config_groups.group_0.output_activations", {"num_bits": 8}, "output_activations is"),
        ("config_groups.group_0.weights", None, "group_0.weights is missing, expected an object"),
        ("config_groups.group_0.weights.type", "float", r'weights.type is "float", expected "int"'),
        ("config_groups.group_0.weights.num_bits", 2, "weights.num_bits is 2, expected 4 or 8 with format"),
        ("config_groups.group_0.weights.symmetric", False, "weights.symmetric is false, expected true"),
        ("config_groups.group_0.weights.dynamic", True, "weights.dynamic is true, expected false"),
        ("config_groups.group_0.weights.actorder", "group", r'weights.actorder is "group", expected null'),
        ("config_groups.group_0.weights.strategy", "block", 'weights.strategy is "block", expected "group"'),
        (
            "config_groups.group_0.weights.group_size",
            48,
            "weights.group_size is 48, expected a multiple of 32",
        ),
        ("config_groups.group_0.weights.group_size", 256, "weights.group_size is 256, expected .* 128"),
        ("config_groups.group_0.weights.group_size", None, "weights.group_size is missing"),
    ],
)
def test_what_is_not_served_is_refused_by_key(path: str, value: object, complaint: str) -> None:
    section = copy.deepcopy(
        quantization_config(StoredQuantization(num_bits=4, group_size=32, is_packed=True))
    )
    *parents, key = path.split(".")
    at: Any = section
    for parent in parents:
        at = at[parent]
    at[key] = value
    with pytest.raises(ConfigError, match=complaint):
        config_with(section)


def changed(
    directory: Path, out_dir: Path, name: str, tensor: torch.Tensor | None
) -> tuple[CheckpointReader, ModelConfig]:
    """The checkpoint with one tensor more, other, or less."""
    tensors: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, out_dir / "model.safetensors")
    return CheckpointReader(out_dir), ModelConfig.from_directory(directory)


W1 = "model.layers.0.block_sparse_moe.experts.3.w1.weight"


def test_tensors_that_do_not_fit_are_named(directory: Path, kind: str, tmp_path: Path) -> None:
    def refuse(name: str, tensor: torch.Tensor | None, error: type[Exception], complaint: str) -> None:
        reader, config = changed(directory, tmp_path, name, tensor)
        with pytest.raises(error, match=complaint):
            validate_dense(reader, config)
            list(read_quantized_experts(reader, config, (3,), kind))

    words = 128 * int(kind.removeprefix("int")) // 32
    refuse(f"{W1}_scale", None, MissingTensorError, "w1.weight_scale is missing")
    refuse(
        f"{W1}_packed",
        torch.zeros(128, 3, dtype=torch.int32),
        TensorMismatchError,
        rf"expected \[128, {words}\]",
    )
    refuse(f"{W1}_packed", torch.zeros(128, words), TensorMismatchError, "dtype F32, expected I32")
    refuse(
        f"{W1}_shape",
        torch.tensor([128, 64]),
        TensorMismatchError,
        r"content \[128, 64\], expected \[128, 128\]",
    )
    refuse(f"{W1}_g_idx", torch.zeros(128, dtype=torch.int32), ConfigError, "actorder is applied to a tensor")
    query = "model.layers.1.self_attn.q_proj.weight_packed"
    refuse(
        query,
        torch.zeros(128, words, dtype=torch.int32),
        ConfigError,
        "quantization_config.ignore is without",
    )


def test_an_order_must_suit_checkpoint_device_and_shape(directory: Path, kind: str) -> None:
    config, whole = ModelConfig.from_directory(directory), ModelConfig.from_directory(embedded_directory())
    assert serving_quantization(None, whole, CPU) is None
    assert serving_quantization(None, config, CPU) == kind
    assert serving_quantization(kind, config, CPU) == serving_quantization(kind, whole, CPU) == kind
    other = "int4" if kind == "int8" else "int8"
    with pytest.raises(ValueError, match=f"expert_quantization is '{other}', but .* stored as {kind}"):
        serving_quantization(other, config, CPU)
    with pytest.raises(
        ValueError, match=f"expert_quantization is '{kind}', which needs device cpu, not cuda"
    ):
        serving_quantization(kind, whole, torch.device("cuda"))
    with pytest.raises(ValueError, match=f"experts are stored as {kind}, which needs device cpu, not cuda"):
        serving_quantization(None, config, torch.device("cuda"))
    narrow = ModelConfig.from_dict(raw_config() | {"intermediate_size": 80})
    with pytest.raises(ValueError, match="are 128 and 80, expected multiples of 32"):
        serving_quantization(kind, narrow, CPU)


def test_the_command_quantizes_a_directory_or_a_preset(
    kind: str, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = ["--expert-quantization", kind]
    assert main(["make-checkpoint", str(embedded_directory()), str(tmp_path / "a"), *order]) == 0
    for file in directory.iterdir():
        assert (tmp_path / "a" / file.name).read_bytes() == file.read_bytes()
    assert main(["make-checkpoint", "tiny", str(tmp_path / "b"), *order]) == 0
    assert len(read(tmp_path / "b", kind)) == 8
    assert main(["make-checkpoint", str(tmp_path / "a"), str(tmp_path / "c"), *order]) == 1
    assert f"are stored as {kind} already" in capsys.readouterr().err
    assert main(["make-checkpoint", "huge", str(tmp_path / "d"), *order]) == 1
    assert "model is 'huge', expected one of tiny, mid, phi-3.5-moe, or" in capsys.readouterr().err
