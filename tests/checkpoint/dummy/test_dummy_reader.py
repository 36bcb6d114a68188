import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.download import embedded_directory
from actors.checkpoint.dummy.dummy_reader import DummyReader, write_checkpoint
from actors.checkpoint.dummy.presets import preset_config
from actors.checkpoint.dummy.small_files import MIN_VOCAB_SIZE, write_small_files
from actors.checkpoint.layout import all_tensors, dense_tensor_names
from actors.checkpoint.open import open_model
from actors.checkpoint.reader import CheckpointReader
from actors.checkpoint.weights import read_dense, read_expert, validate_dense, validate_experts
from actors.errors import MissingTensorError, TensorMismatchError
from actors.protocol.settings import ModelSource
from tests.checkpoint.random_model import write_random_model

FREE_OF_TORCH = ("config", "download", "dummy.presets", "dummy.small_files", "index", "layout")


def small(**changes: object) -> ModelConfig:
    """Return a config like the mid preset's, small enough to be written quickly."""
    rope = dataclasses.replace(preset_config("mid").rope, short_factor=(1.0,) * 8, long_factor=(2.0,) * 8)
    sizes: dict[str, object] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "rope": rope,
    }
    return dataclasses.replace(preset_config("mid"), **sizes | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("preset", "num_parameters"),
    [pytest.param("mid", 716e6, id="mid"), pytest.param("phi-3.5-moe", 41.87e9, id="phi-3.5-moe")],
)
def test_a_preset_has_its_size(preset: str, num_parameters: float) -> None:
    config = preset_config(preset)
    reader = DummyReader(config)
    stored_bytes = validate_dense(reader, config) + validate_experts(reader, config, range(16))
    assert stored_bytes / 2 == pytest.approx(num_parameters, rel=1e-3)


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match=r"preset is 'huge', expected one of tiny, mid, phi-3\.5-moe"):
        preset_config("huge")


def test_a_tensor_depends_on_seed_and_name_alone() -> None:
    config = small()
    name, shape = "model.layers.1.block_sparse_moe.experts.9.w2.weight", (64, 96)
    whole, fresh = DummyReader(config, seed=4), DummyReader(config, seed=4)
    for other, other_shape in all_tensors(config).items():
        whole.read(other, other_shape)
    assert torch.equal(whole.read(name, shape), fresh.read(name, shape))
    assert not torch.equal(fresh.read(name, shape), DummyReader(config, seed=5).read(name, shape))
    assert not torch.equal(fresh.read(name, shape), fresh.read(name.replace("9", "8"), shape))


def test_weights_have_the_scales_that_spread_the_routes() -> None:
    config = dataclasses.replace(preset_config("mid"), num_layers=1)
    dense = read_dense(DummyReader(config), config, torch.float32)
    layer = dense.layers[0]
    assert layer.gate.std().item() == pytest.approx(0.3, rel=0.05)
    for weight in (dense.embed, layer.q.weight, layer.o.weight, dense.lm_head.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(weight.mean().item()) < 1e-3
    assert torch.equal(layer.input_norm.weight, torch.ones(config.hidden_size))
    assert 0 < layer.input_norm.bias.abs().max().item() < 0.2
    rows = torch.randn(2000, config.hidden_size, generator=torch.Generator().manual_seed(1))
    counts = torch.bincount((rows @ layer.gate.T).topk(2).indices.flatten(), minlength=16)
    assert counts.min().item() > 100


def test_no_two_rows_of_a_large_matrix_are_equal() -> None:
    config = dataclasses.replace(preset_config("phi-3.5-moe"), num_layers=1)
    embed = DummyReader(config).read("model.embed_tokens.weight", (32064, 4096))
    assert len(torch.unique(embed[:, :16].float(), dim=0)) == 32064


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32", None])
def test_dummy_weights_have_the_stored_dtype(stored: str | None) -> None:
    reader = DummyReader(small(stored_dtype=stored))
    expected = getattr(torch, stored or "bfloat16")
    info = reader.check("lm_head.weight", (320, 64))
    assert info.dtype == reader.read("lm_head.weight", (320, 64)).dtype == expected


def test_a_dummy_reader_refuses_what_a_file_would_refuse() -> None:
    reader = DummyReader(small(lm_head_bias=False))
    with pytest.raises(MissingTensorError):
        reader.read("lm_head.bias", (320,))
    with pytest.raises(TensorMismatchError):
        reader.read("lm_head.weight", (64, 320))


def test_what_is_written_is_what_is_generated(tmp_path: Path) -> None:
    config = small()
    calls: list[tuple[int, int]] = []
    write_random_model(config, tmp_path, progress=lambda done, total: calls.append((done, total)), seed=3)
    assert ModelConfig.from_directory(tmp_path) == config
    files, generated = CheckpointReader(tmp_path), DummyReader(config, seed=3)
    assert set(files.names) == set(generated.names)
    for name, shape in all_tensors(config).items():
        assert torch.equal(files.read(name, shape), generated.read(name, shape))
    total = validate_dense(files, config) + validate_experts(files, config, range(16))
    assert calls[0] == (0, total)
    assert calls[-1] == (total, total)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 + config.num_layers


def test_a_written_tokenizer_decodes_every_id_and_returns_every_text(tmp_path: Path) -> None:
    config = small()
    write_random_model(config, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config.vocab_size
    # A single byte above 127 decodes to the replacement character; no token decodes to an empty text.
    assert all(tokenizer.decode([id_], skip_special_tokens=False) for id_ in range(config.vocab_size))
    text = "Löse 2x + 3 = 7\n\t→ x = 2 🙂"
    ids = tokenizer.encode(f"<|user|>\n{text}<|end|>").ids
    assert tokenizer.decode(ids) == "\n" + text
    assert (ids[0], ids[-1]) == (7, 5)
    described = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "<|assistant|>" in described["chat_template"]
    assert tokenizer.token_to_id(described["eos_token"]) in config.eos_token_ids


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"vocab_size is {MIN_VOCAB_SIZE - 1}"):
        write_random_model(small(vocab_size=MIN_VOCAB_SIZE - 1), tmp_path)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        write_checkpoint("mid", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]


def test_small_files_of_a_preset_are_enough_for_an_ingress(tmp_path: Path) -> None:
    assert write_small_files("mid", tmp_path) == preset_config("mid") == ModelConfig.from_directory(tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() == 32064


def test_the_tiny_preset_is_the_embedded_model_with_other_weights(tmp_path: Path) -> None:
    write_checkpoint("tiny", tmp_path)
    embedded = ModelConfig.from_directory(embedded_directory())
    assert ModelConfig.from_directory(tmp_path) == embedded
    assert (tmp_path / "tokenizer.json").read_bytes() == (
        embedded_directory() / "tokenizer.json"
    ).read_bytes()
    written, original = CheckpointReader(tmp_path), CheckpointReader(embedded_directory())
    assert set(written.names) == set(original.names)
    assert not torch.equal(read_expert(written, embedded, 0, 0).w1, read_expert(original, embedded, 0, 0).w1)


def test_open_model_reads_a_directory_or_makes_weights_up(tmp_path: Path) -> None:
    written = small()
    write_random_model(written, tmp_path)
    config, reader = open_model(ModelSource(model=str(tmp_path)), dense_tensor_names)
    assert config == written
    assert isinstance(reader, CheckpointReader)
    config, reader = open_model(ModelSource(model="mid", load_format="dummy"), dense_tensor_names)
    assert config == preset_config("mid")
    assert isinstance(reader, DummyReader)
    for shard in tmp_path.glob("*.safetensors*"):
        shard.unlink()
    config, reader = open_model(ModelSource(model=str(tmp_path), load_format="dummy"), dense_tensor_names)
    assert config == written
    assert isinstance(reader, DummyReader)


def test_the_modules_that_an_ingress_imports_import_no_torch() -> None:
    modules = ", ".join(f"actors.checkpoint.{name}" for name in FREE_OF_TORCH)
    script = f"import sys, actors.errors, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3]).returncode == 0
