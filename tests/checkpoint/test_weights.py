import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.layout import all_tensors, dense_tensor_names, expert_tensor_names
from actors.checkpoint.reader import CheckpointReader
from actors.checkpoint.weights import (
    read_dense,
    read_expert,
    read_experts,
    serving_dtype,
    validate_dense,
    validate_experts,
)
from actors.errors import (
    CheckpointError,
    ConfigError,
    MissingTensorError,
    TensorMismatchError,
    UnreadableFileError,
)
from tests.support import small_checkpoints
from tests.support.small_checkpoints import Spec

SHARDED = Spec(name="sharded", seed=5, attention_bias=True, lm_head_bias=True, num_shards=3)
INDEX = "model.safetensors.index.json"
GATE = "model.layers.1.block_sparse_moe.gate.weight"


def load(spec: Spec, directory: Path) -> tuple[CheckpointReader, ModelConfig]:
    small_checkpoints.write(spec, directory)
    return CheckpointReader(directory), ModelConfig.from_directory(directory)


def shard_with(directory: Path, tensor: str) -> Path:
    index = json.loads((directory / INDEX).read_text())
    return directory / str(index["weight_map"][tensor])


def rewrite(file: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Replace a tensor in a safetensors file, or remove it."""
    tensors = load_file(file)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, file)


@pytest.mark.parametrize("spec", small_checkpoints.CATALOGUE, ids=lambda spec: spec.name)
def test_every_small_checkpoint_is_read_bit_for_bit(spec: Spec, tmp_path: Path) -> None:
    reader, config = load(spec, tmp_path)
    stored = small_checkpoints.weights(spec)
    dense = read_dense(reader, config, spec.stored_dtype)
    assert torch.equal(dense.embed, stored["model.embed_tokens.weight"])
    assert torch.equal(dense.norm.bias, stored["model.norm.bias"])
    head = "model.embed_tokens.weight" if spec.tie_word_embeddings else "lm_head.weight"
    assert torch.equal(dense.lm_head.weight, stored[head])
    assert (dense.lm_head.bias is not None) == spec.lm_head_bias
    for number, layer in enumerate(dense.layers):
        at = f"model.layers.{number}."
        assert torch.equal(layer.input_norm.weight, stored[f"{at}input_layernorm.weight"])
        assert torch.equal(layer.post_attention_norm.bias, stored[f"{at}post_attention_layernorm.bias"])
        assert torch.equal(layer.gate, stored[f"{at}block_sparse_moe.gate.weight"])
        for name in "qkvo":
            linear = getattr(layer, name)
            assert torch.equal(linear.weight, stored[f"{at}self_attn.{name}_proj.weight"])
            assert (linear.bias is not None) == spec.attention_bias
            if linear.bias is not None:
                assert torch.equal(linear.bias, stored[f"{at}self_attn.{name}_proj.bias"])
    for number, expert, weights in read_experts(reader, config, (0, 7, 15), spec.stored_dtype):
        for name, weight in weights._asdict().items():
            at = f"model.layers.{number}.block_sparse_moe.experts.{expert}.{name}.weight"
            assert torch.equal(weight, stored[at])


def test_the_roles_share_out_all_tensors_of_a_checkpoint(tmp_path: Path) -> None:
    reader, config = load(SHARDED, tmp_path)
    dense, experts = dense_tensor_names(config), expert_tensor_names(config, range(16))
    assert not dense & experts
    assert dense | experts == set(reader.names) == set(all_tensors(config))
    assert expert_tensor_names(config, (3,)) < experts


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_arrive_in_the_dtype_asked_for(
    stored: torch.dtype, asked: torch.dtype, tmp_path: Path
) -> None:
    spec = dataclasses.replace(SHARDED, stored_dtype=stored, num_layers=1)
    reader, config = load(spec, tmp_path)
    dense = read_dense(reader, config, asked)
    source = small_checkpoints.weights(spec)["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(dense.layers[0].q.weight, source.to(asked))
    assert all(weight.dtype == asked for _, _, w in read_experts(reader, config, (1,), asked) for weight in w)
    assert read_expert(reader, config, 0, 1).w1.dtype == stored


def test_auto_is_the_stored_dtype_and_an_unknown_name_is_refused() -> None:
    config = ModelConfig.from_dict(small_checkpoints.config(SHARDED))
    assert serving_dtype("auto", dataclasses.replace(config, stored_dtype="float16")) == torch.float16
    assert serving_dtype("auto", dataclasses.replace(config, stored_dtype=None)) == torch.float32
    assert serving_dtype("bfloat16", config) == torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        serving_dtype("int8", config)


def test_dense_weights_outlive_their_files(tmp_path: Path) -> None:
    reader, config = load(SHARDED, tmp_path)
    dense = read_dense(reader, config, torch.float32)
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(b"")
    expected = small_checkpoints.weights(SHARDED)["lm_head.weight"]
    assert torch.equal(dense.lm_head.weight, expected)


def test_progress_starts_at_nothing_and_ends_at_the_total(tmp_path: Path) -> None:
    reader, config = load(SHARDED, tmp_path)
    dense_calls: list[tuple[int, int]] = []
    expert_calls: list[tuple[int, int]] = []
    read_dense(reader, config, torch.bfloat16, progress=lambda done, total: dense_calls.append((done, total)))
    for _ in read_experts(
        reader, config, (2, 9), torch.float32, progress=lambda done, total: expert_calls.append((done, total))
    ):
        pass
    expert_bytes = 3 * config.hidden_size * config.intermediate_size * 4
    assert expert_calls == [(n * expert_bytes, 4 * expert_bytes) for n in range(5)]
    total = validate_dense(reader, config)
    assert dense_calls[0] == (0, total)
    assert dense_calls[-1] == (total, total)
    assert dense_calls == sorted(dense_calls)
    all_bytes = sum(tensor.nbytes for tensor in small_checkpoints.weights(SHARDED).values())
    assert total + validate_experts(reader, config, range(16)) == all_bytes


def test_only_the_shards_of_a_role_need_to_be_there(tmp_path: Path) -> None:
    _, config = load(SHARDED, tmp_path)
    wanted = {shard_with(tmp_path, name) for name in expert_tensor_names(config, (15,))}
    for file in set(tmp_path.glob("*.safetensors")) - wanted:
        file.unlink()
    assert (
        len(list(read_experts(CheckpointReader(tmp_path), config, (15,), torch.float32))) == config.num_layers
    )
    with pytest.raises(UnreadableFileError, match="does not exist"):
        validate_dense(CheckpointReader(tmp_path), config)


def test_a_reader_pickles(tmp_path: Path) -> None:
    reader, config = load(SHARDED, tmp_path)
    copy = pickle.loads(pickle.dumps(reader))
    assert validate_dense(copy, config) == validate_dense(reader, config)


def test_a_tensor_that_the_index_does_not_name_is_missing_there(tmp_path: Path) -> None:
    small_checkpoints.write(SHARDED, tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    del index["weight_map"][GATE]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(MissingTensorError) as raised:
        validate_dense(CheckpointReader(tmp_path), ModelConfig.from_directory(tmp_path))
    assert raised.value.args == (str(tmp_path / INDEX), GATE)


def test_a_tensor_that_its_shard_lacks_is_missing_there(tmp_path: Path) -> None:
    _, config = load(SHARDED, tmp_path)
    shard = shard_with(tmp_path, GATE)
    rewrite(shard, GATE, None)
    with pytest.raises(MissingTensorError) as raised:
        read_dense(CheckpointReader(tmp_path), config, torch.float32)
    assert raised.value.args == (str(shard), GATE)


def test_a_wrong_shape_names_both_shapes(tmp_path: Path) -> None:
    _, config = load(SHARDED, tmp_path)
    shard = shard_with(tmp_path, GATE)
    rewrite(shard, GATE, torch.zeros(32, 16))
    with pytest.raises(TensorMismatchError) as raised:
        validate_dense(CheckpointReader(tmp_path), config)
    assert raised.value.args == (str(shard), GATE, "shape", "[32, 16]", "[16, 32]")


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(torch.float64, "F64"), (torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")],
    ids=str,
)
def test_a_dtype_that_is_not_served_is_refused(dtype: torch.dtype, stored: str, tmp_path: Path) -> None:
    _, config = load(SHARDED, tmp_path)
    name = "model.layers.1.block_sparse_moe.experts.4.w2.weight"
    shard = shard_with(tmp_path, name)
    rewrite(shard, name, torch.zeros(config.hidden_size, config.intermediate_size).to(dtype))
    reader = CheckpointReader(tmp_path)
    validate_experts(reader, config, (0, 1, 2, 3))
    with pytest.raises(TensorMismatchError) as raised:
        next(read_experts(reader, config, (4,), torch.float32))
    assert raised.value.args == (str(shard), name, "dtype", stored, "BF16 or F16 or F32")


@pytest.mark.parametrize(
    "keep",
    [pytest.param(0, id="empty"), pytest.param(5, id="in the length"), pytest.param(100, id="in the header"),
     pytest.param(-1, id="last byte")],
)  # fmt: skip
def test_a_truncated_shard_is_found_before_anything_is_read(keep: int, tmp_path: Path) -> None:
    _, config = load(SHARDED, tmp_path)
    shard = shard_with(tmp_path, GATE)
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(UnreadableFileError) as raised:
        validate_dense(CheckpointReader(tmp_path), config)
    assert raised.value.file == str(shard)
    assert raised.value.reason.startswith("is truncated or no safetensors file")


def test_a_shard_that_is_a_pointer_of_git_lfs_is_unreadable(tmp_path: Path) -> None:
    small_checkpoints.write(dataclasses.replace(SHARDED, num_shards=1), tmp_path)
    single = tmp_path / "model.safetensors"
    single.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UnreadableFileError, match=r"model\.safetensors: is truncated or no safetensors file"):
        CheckpointReader(tmp_path)


def test_a_shard_in_the_index_that_is_absent_is_named(tmp_path: Path) -> None:
    reader, config = load(SHARDED, tmp_path)
    shard = shard_with(tmp_path, GATE)
    shard.unlink()
    with pytest.raises(UnreadableFileError) as raised:
        validate_dense(reader, config)
    assert raised.value.args == (str(shard), f"does not exist, {INDEX} puts tensors there")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param("{", "is not valid JSON", id="cut"),
        pytest.param("{}", "weight_map is null", id="no map"),
        pytest.param('{"weight_map": ["a"]}', r'weight_map is \["a"\]', id="list"),
        pytest.param('{"weight_map": {"a": 1}}', "puts tensor a into 1", id="number"),
        pytest.param('{"weight_map": {"a": "../b.safetensors"}}', "puts tensor a into", id="outside"),
        pytest.param('{"weight_map": {"a": "*.safetensors"}}', "puts tensor a into", id="pattern"),
        pytest.param('{"weight_map": {"a": "pytorch_model.bin"}}', "puts tensor a into", id="pickle"),
    ],
)
def test_an_unreadable_index_is_refused(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UnreadableFileError, match=complaint) as raised:
        CheckpointReader(tmp_path)
    assert raised.value.file == str(tmp_path / INDEX)


def test_a_directory_without_weights_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="holds no weights, expected model"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("key", ["attention_bias", "lm_head_bias"])
def test_biases_that_the_config_denies_are_not_dropped_silently(key: str, tmp_path: Path) -> None:
    reader, config = load(SHARDED, tmp_path)
    denied = ModelConfig.from_dict(small_checkpoints.config(SHARDED) | {key: False})
    assert denied != config
    with pytest.raises(ConfigError) as raised:
        validate_dense(reader, denied)
    assert raised.value.key == key


def test_biases_that_the_config_promises_must_be_there(tmp_path: Path) -> None:
    spec = dataclasses.replace(SHARDED, attention_bias=False)
    reader, config = load(spec, tmp_path)
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.q_proj\.bias is missing"):
        validate_dense(reader, dataclasses.replace(config, attention_bias=True))


def test_an_expert_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    reader, config = load(SHARDED, tmp_path)
    with pytest.raises(ValueError, match="no expert 16 in layer 0"):
        read_expert(reader, config, 0, 16)
