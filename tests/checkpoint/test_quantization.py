"""Tests checkpoints with quantized experts: writing, reading, and refusing what cannot be served."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.download import embedded_directory
from actors.checkpoint.dummy.dummy_reader import DummyReader
from actors.checkpoint.quantization import KINDS, StoredQuantization, new_storage, quantization_config
from actors.checkpoint.quantized_weight import QuantizedExpert, QuantizedWeight, dequantize, join, quantize
from actors.checkpoint.read_quantized import read_quantized_experts, serving_quantization
from actors.checkpoint.reader import CheckpointReader
from actors.checkpoint.weights import read_dense, read_expert, read_experts, validate_dense, validate_experts
from actors.checkpoint.write import quantize_checkpoint
from actors.errors import ConfigError, MissingTensorError, TensorMismatchError
from cluster.__main__ import main

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NUM_BITS = {"int8": 8, "int4": 4, "fp8": 8}
LOSS = {"int8": 0.01, "int4": 0.12, "fp8": 0.04}


@pytest.fixture(scope="module", params=KINDS)
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
            assert are_same(ours, theirs)
            assert ours.num_bits == NUM_BITS[kind]
            assert ours.values.dtype == (torch.float8_e4m3fn if kind == "fp8" else torch.int8)
    original = read_expert(
        CheckpointReader(embedded_directory()), ModelConfig.from_directory(embedded_directory()), 1, 9
    )
    error = (dequantize(stored[1, 9].w2) - original.w2.float()).norm() / original.w2.float().norm()
    assert error < LOSS[kind]


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


def are_same(ours: QuantizedWeight, theirs: QuantizedWeight) -> bool:
    """Return whether two quantized weights are the same bit by bit."""
    same_values = torch.equal(ours.values.view(torch.uint8), theirs.values.view(torch.uint8))
    return same_values and torch.equal(ours.scales, theirs.scales) and ours.num_bits == theirs.num_bits


@pytest.mark.parametrize(
    ("kind", "layout"), [(name, layout) for name in KINDS for layout in KINDS[name].formats]
)
@pytest.mark.parametrize("group_size", [32, 64, None])
def test_a_config_is_read_as_it_was_written(kind: str, layout: str, group_size: int | None) -> None:
    stored = StoredQuantization(kind=kind, group_size=group_size, format=layout)
    assert config_with(quantization_config(stored)).stored_quantization == stored


@pytest.mark.parametrize(
    ("kind", "layout", "group_size", "scale_dtype"),
    [
        pytest.param("int8", "int-quantized", None, torch.float16, id="integers"),
        pytest.param("int8", "int-quantized", 32, torch.bfloat16, id="integers-in-groups"),
        pytest.param("fp8", "float-quantized", None, torch.float32, id="floats"),
        pytest.param("fp8", "float-quantized", 64, torch.bfloat16, id="floats-in-groups"),
        pytest.param("fp8", "naive-quantized", None, torch.bfloat16, id="floats-by-their-other-name"),
    ],
)
def test_unpacked_values_of_8_bits_are_read(
    kind: str, layout: str, group_size: int | None, scale_dtype: torch.dtype, tmp_path: Path
) -> None:
    stored = StoredQuantization(kind=kind, group_size=group_size, format=layout)
    content = raw_config() | {"quantization_config": quantization_config(stored)}
    (tmp_path / "config.json").write_text(json.dumps(content))
    original = load_file(embedded_directory() / "model.safetensors")
    tensors = dict(original)
    for name in [name for name in tensors if ".experts." in name]:
        weight = quantize(tensors[name], kind, group_size)
        tensors |= {name: weight.values, f"{name}_scale": weight.scales.to(scale_dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    weights = read(tmp_path, kind)[2, 9]
    assert weights.w1.values.dtype == (torch.float8_e4m3fn if kind == "fp8" else torch.int8)
    assert weights.w1.scales.dtype == (torch.bfloat16 if scale_dtype == torch.bfloat16 else torch.float32)
    assert weights.w1.scales.shape == (128, 1 if group_size is None else 128 // group_size)
    before = original["model.layers.2.block_sparse_moe.experts.9.w1.weight"].float()
    assert (dequantize(weights.w1) - before).norm() < 2 * LOSS[kind] * before.norm()


def test_fp8_is_written_as_floats_with_a_scale_per_output(tmp_path: Path) -> None:
    quantize_checkpoint(embedded_directory(), tmp_path, "fp8")
    section = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    group = section["config_groups"]["group_0"]
    assert section["format"] == group["format"] == "float-quantized"
    wanted = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "group_size": None}
    assert {key: group["weights"][key] for key in wanted} == wanted
    assert group["input_activations"] is None
    tensors: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        tensors |= load_file(file)
    assert tensors[W1].shape == (128, 128) and tensors[W1].dtype == torch.float8_e4m3fn
    assert tensors[f"{W1}_scale"].shape == (128, 1)
    assert not [name for name in tensors if name.endswith(("_packed", "_shape"))]


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
        (
            "format",
            "marlin-24",
            'format is "marlin-24", expected "pack-quantized", "int-quantized", "float-quantized" or "naive-',
        ),
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
        (
            "config_groups.group_0.weights.type",
            "float",
            'weights.type is "float", expected "int" with format "pack-quantized"',
        ),
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
    refuse("int4", path, value, complaint)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (
            "config_groups.group_0.input_activations",
            {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
            r"input_activations is .* expected null \(weights alone",
        ),
        (
            "config_groups.group_0.weights.type",
            "int",
            'weights.type is "int", expected "float" with format "float-quantized"',
        ),
        (
            "config_groups.group_0.weights.num_bits",
            4,
            'weights.num_bits is 4, expected 8 with format "float-quantized"',
        ),
        (
            "config_groups.group_0.weights.strategy",
            "tensor",
            'weights.strategy is "tensor", expected "group" or "channel"',
        ),
        ("config_groups.group_0.weights.symmetric", False, "weights.symmetric is false, expected true"),
    ],
)
def test_what_is_not_served_of_floats_is_refused_by_key(path: str, value: object, complaint: str) -> None:
    refuse("fp8", path, value, complaint)


def refuse(kind: str, path: str, value: object, complaint: str) -> None:
    """Check that a config that is right except for this value is refused."""
    section = copy.deepcopy(quantization_config(new_storage(kind, (128, 128))))
    assert config_with(section).stored_quantization is not None
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
    """Write the checkpoint with one tensor added, replaced or left out."""
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

    words = 128 * NUM_BITS[kind] // 32
    query = "model.layers.1.self_attn.q_proj.weight"
    refuse(f"{W1}_scale", None, MissingTensorError, "w1.weight_scale is missing")
    refuse(f"{W1}_g_idx", torch.zeros(128, dtype=torch.int32), ConfigError, "actorder is applied to a tensor")
    refuse(f"{query}_scale", torch.zeros(128, 1), ConfigError, "quantization_config.ignore is without")
    if kind == "fp8":
        refuse(f"{W1}_scale", torch.zeros(128, 2), TensorMismatchError, r"\[128, 2\], expected \[128, 1\]")
        refuse(W1, torch.zeros(128, 128).to(torch.int8), TensorMismatchError, "dtype I8, expected F8_E4M3")
        wide = torch.zeros(128, 128).to(torch.float8_e5m2)
        refuse(W1, wide, TensorMismatchError, "dtype F8_E5M2, expected F8_E4M3")
        return
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
    refuse(
        f"{query}_packed",
        torch.zeros(128, words, dtype=torch.int32),
        ConfigError,
        "quantization_config.ignore is without",
    )


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("has_triton", "has_fp8"):
        monkeypatch.setattr(f"actors.checkpoint.read_quantized.{name}", lambda device: device.type == "cuda")


def test_a_gpu_that_cannot_read_fp8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.devices.importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr("actors.checkpoint.read_quantized.has_triton", lambda _: True)
    config = ModelConfig.from_directory(embedded_directory())
    for capability, is_served in (((8, 0), False), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert serving_quantization("int8", config, CUDA) == "int8"
        if is_served:
            assert serving_quantization("fp8", config, CUDA) == "fp8"
            continue
        with pytest.raises(ValueError, match=r"'fp8', which needs a GPU of compute capability 8\.9 or more"):
            serving_quantization("fp8", config, CUDA)


@pytest.mark.usefixtures("with_triton")
def test_a_requested_quantization_must_suit_checkpoint_device_and_shape(directory: Path, kind: str) -> None:
    config, whole = ModelConfig.from_directory(directory), ModelConfig.from_directory(embedded_directory())
    served = {"int8": (CPU, CUDA), "int4": (CPU,), "fp8": (CUDA,)}[kind]
    for device in (CPU, CUDA):
        assert serving_quantization(None, whole, device) is None
        if device in served:
            assert serving_quantization(None, config, device) == kind
            assert serving_quantization(kind, config, device) == kind
            assert serving_quantization(kind, whole, device) == kind
            continue
        complaint = f"which needs device {served[0].type}, not {device.type}"
        with pytest.raises(ValueError, match=f"expert_quantization is '{kind}', {complaint}"):
            serving_quantization(kind, whole, device)
        with pytest.raises(ValueError, match=f"the experts are stored as {kind}, {complaint}"):
            serving_quantization(None, config, device)
    other = "int4" if kind == "int8" else "int8"
    with pytest.raises(ValueError, match=f"expert_quantization is '{other}', but .* stored as {kind}"):
        serving_quantization(other, config, served[0])


def test_cuda_without_triton_serves_no_quantized_experts(
    directory: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.checkpoint.read_quantized.has_triton", lambda device: False)
    config, whole = ModelConfig.from_directory(directory), ModelConfig.from_directory(embedded_directory())
    assert serving_quantization(None, whole, CUDA) is None
    if "cuda" in KINDS[kind].devices:
        with pytest.raises(
            ValueError, match=f"expert_quantization is '{kind}', .* with Triton alone: expected"
        ):
            serving_quantization(kind, whole, CUDA)
        with pytest.raises(ValueError, match=f"stored as {kind}, which device cuda serves with Triton alone"):
            serving_quantization(None, config, CUDA)


def test_groups_must_divide_the_inputs_where_there_are_groups(kind: str, with_triton: None) -> None:
    narrow = ModelConfig.from_dict(raw_config() | {"intermediate_size": 80})
    if kind == "fp8":
        assert serving_quantization(kind, narrow, CUDA) == kind
        return
    with pytest.raises(ValueError, match="have 128 and 80 inputs, expected multiples of 32"):
        serving_quantization(kind, narrow, CPU)


def test_whole_weights_are_quantized_on_the_device(directory: Path, kind: str) -> None:
    """The device "meta" has no memory: its tensors show that the work was done on the device."""
    for source in (embedded_directory(), directory):
        config, reader = ModelConfig.from_directory(source), CheckpointReader(source)
        experts = read_quantized_experts(reader, config, (3,), kind, "meta")
        layer, expert, weights = next(experts)
        assert (layer, expert) == (0, 3)
        assert all(part.device.type == "meta" for weight in weights for part in weight[:2])
        on_cpu = next(read_quantized_experts(reader, config, (3,), kind))[2]
        for there, here in zip(weights, on_cpu, strict=True):
            for part in ("values", "scales"):
                assert getattr(there, part).shape == getattr(here, part).shape
                assert getattr(there, part).dtype == getattr(here, part).dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_bits(directory: Path, kind: str) -> None:
    """Both for experts quantized at load, with one scale per output, and for stored ones."""
    for source in (embedded_directory(), directory):
        config, reader = ModelConfig.from_directory(source), CheckpointReader(source)
        there = read_quantized_experts(reader, config, (3, 9), kind, CUDA)
        if config.stored_quantization is None:
            here = (
                [quantize(weight, kind, None) for weight in experts]
                for *_, experts in read_experts(reader, config, (3, 9), torch.bfloat16)
            )
        else:
            here = (list(experts) for *_, experts in read_quantized_experts(reader, config, (3, 9), kind))
        for (*_, ours), theirs in zip(there, here, strict=True):
            for weight, expected in zip(ours, theirs, strict=True):
                assert weight.values.device.type == weight.scales.device.type == "cuda"
                on_cpu = weight._replace(values=weight.values.cpu(), scales=weight.scales.cpu())
                assert are_same(on_cpu, expected)
                assert torch.equal(dequantize(weight).cpu(), dequantize(expected))


def test_progress_counts_what_is_stored_whatever_the_device() -> None:
    reader = DummyReader(ModelConfig.from_directory(embedded_directory()))
    config, seen = ModelConfig.from_directory(embedded_directory()), list[tuple[int, int]]()
    list(read_quantized_experts(reader, config, (3,), "fp8", CPU, lambda *counts: seen.append(counts)))
    total = validate_experts(reader, config, (3,))
    assert seen == [(total * layer // 4, total) for layer in range(5)]


WEIGHTS = st.floats(min_value=-1e4, max_value=1e4, width=32)


@given(st.lists(st.lists(WEIGHTS, min_size=5, max_size=5), min_size=1, max_size=4), st.booleans())
def test_fp8_is_within_half_a_step_of_every_value(rows: list[list[float]], is_bf16: bool) -> None:
    """With three bits of fraction half a step is at most 2^-4 of a value, or 2^-10 scales below normal
    values."""
    weight = torch.tensor(rows).to(torch.bfloat16 if is_bf16 else torch.float32)
    quantized = quantize(weight, "fp8", None)
    assert quantized.values.dtype == torch.float8_e4m3fn and quantized.num_bits == 8
    assert quantized.scales.dtype == torch.bfloat16 and quantized.scales.shape == (len(rows), 1)
    assert quantized.num_inputs_per_scale == 5
    assert quantized.values.float().isfinite().all()
    # A scale that is subnormal in bfloat16 has fewer bits.
    is_normal = weight.float().abs().amax(1, keepdim=True) > 1e-34
    error = (dequantize(quantized) - weight.float()).abs()
    bound = torch.maximum(weight.float().abs() * 2**-4, quantized.scales.float() * 2**-10) * (1 + 1e-6)
    assert (error <= bound)[is_normal.expand_as(error)].all()


def test_fp8_rounds_to_the_nearest_and_uses_the_whole_range() -> None:
    # A largest value of 448 makes the scale 1, so the values themselves are rounded.
    weight = torch.tensor([[448.0, -447.0, 1.06, 1.07, 17.0, 19.0, 2**-10 * 1.1, -(2**-6)]])
    quantized = quantize(weight, "fp8", None)
    assert quantized.scales.tolist() == [[1.0]]
    assert quantized.values.float().tolist() == [[448, -448, 1, 1.125, 16, 20, 2**-9, -(2**-6)]]


def test_fp8_is_clamped_if_its_scale_was_rounded_down() -> None:
    # The scale 1 + 2^-8 lies halfway between two bfloat16 numbers and becomes 1.
    quantized = quantize(torch.tensor([[448.0 * (1 + 2**-8), -448.0 * (1 + 2**-8), 3.0]]), "fp8", None)
    assert quantized.scales.tolist() == [[1.0]]
    assert quantized.values.float().tolist() == [[448, -448, 3]]


def test_fp8_of_zeros_is_zeros() -> None:
    assert torch.equal(dequantize(quantize(torch.zeros(3, 8), "fp8", None)), torch.zeros(3, 8))


def test_fp8_may_have_a_scale_for_each_group_of_inputs_and_be_joined() -> None:
    weight = torch.randn(300, 96, generator=torch.Generator().manual_seed(3))
    weight[:, 32:] *= 1e3
    upper, lower = quantize(weight[:100], "fp8", 32), quantize(weight[100:], "fp8", 32)
    assert are_same(join(upper, lower), quantize(weight, "fp8", 32))
    assert upper.scales.shape == (100, 3) and upper.nbytes == 100 * 96 + 100 * 3 * 2
    assert ((dequantize(upper) - weight[:100])[:, :32].norm() / weight[:100, :32].norm()) < 0.04


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32])
def test_dequantized_fp8_is_the_product_with_its_scale(scale_dtype: torch.dtype) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(2, 128)
    scales = torch.tensor([[0.0123], [37.7]]).to(scale_dtype)
    dequantized = dequantize(QuantizedWeight(values, scales, 8))
    expected = values.double() * scales.double()
    assert dequantized.dtype == torch.float32
    exact = expected if scale_dtype == torch.bfloat16 else expected.float().double()
    assert torch.equal(dequantized.double().nan_to_num(-1), exact.nan_to_num(-1))


def test_the_command_quantizes_a_directory_or_a_preset(
    kind: str, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--expert-quantization", kind]
    assert main(["make-checkpoint", str(embedded_directory()), str(tmp_path / "a"), *options]) == 0
    for file in directory.iterdir():
        assert (tmp_path / "a" / file.name).read_bytes() == file.read_bytes()
    assert main(["make-checkpoint", "tiny", str(tmp_path / "b"), *options]) == 0
    assert len(read(tmp_path / "b", kind)) == 8
    assert main(["make-checkpoint", str(tmp_path / "a"), str(tmp_path / "c"), *options]) == 1
    assert f"are stored as {kind} already" in capsys.readouterr().err
    assert main(["make-checkpoint", "huge", str(tmp_path / "d"), *options]) == 1
    assert "model is 'huge', expected one of tiny, mid, phi-3.5-moe, or" in capsys.readouterr().err
