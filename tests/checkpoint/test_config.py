import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.dummy.presets import original_dialect, preset_config
from actors.errors import ConfigError, UnreadableFileError
from tests.support import small_checkpoints

Changes = dict[str, Any]

LONGROPE: Changes = {
    "type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + i for i in range(8)],
    "short_mscale": 1.1,
    "long_mscale": 1.25,
    "original_max_position_embeddings": 64,
}
BASE: Changes = {
    "architectures": ["PhiMoEForCausalLM"],
    "model_type": "phimoe",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rope_scaling": LONGROPE,
    "rms_norm_eps": 1e-5,
    "sliding_window": 128,
    "attention_bias": True,
    "lm_head_bias": True,
    "num_experts_per_tok": 2,
    "num_local_experts": 16,
    "router_jitter_noise": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "torch_dtype": "bfloat16",
}


def without(values: Changes, *keys: str) -> Changes:
    return {key: value for key, value in values.items() if key not in keys}


def scaling(**changes: Any) -> Changes:
    return {"rope_scaling": LONGROPE | changes}


def test_original_dialect_is_read_in_full() -> None:
    config = ModelConfig.from_dict(BASE)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (300, 64, 48)
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (2, 4, 2)
    assert (config.head_dim, config.kv_size) == (16, 32)
    assert (config.num_experts, config.num_experts_per_token) == (16, 2)
    assert (config.max_position_embeddings, config.sliding_window) == (512, 128)
    assert (config.layer_norm_eps, config.router_jitter) == (1e-5, 0.02)
    assert (config.attention_bias, config.lm_head_bias, config.tie_word_embeddings) == (True, True, False)
    assert (config.stored_dtype, config.bos_token_id, config.eos_token_ids) == ("bfloat16", 1, (3,))
    assert config.rope.is_longrope
    assert config.rope.theta == 10000.0
    assert config.rope.short_factor == (1.0,) * 8
    assert config.rope.long_factor == tuple(1.0 + i for i in range(8))
    assert (config.rope.short_mscale, config.rope.long_mscale) == (1.1, 1.25)
    assert config.rope.original_max_position_embeddings == 64


def test_newer_dialect_gives_the_same_config() -> None:
    newer = without(BASE, "rope_theta", "rope_scaling", "original_max_position_embeddings", "torch_dtype")
    newer |= {
        "architectures": ["PhimoeForCausalLM"],
        "dtype": "bfloat16",
        "rope_parameters": without(LONGROPE, "type") | {"rope_type": "longrope", "rope_theta": 10000},
    }
    assert ModelConfig.from_dict(newer) == ModelConfig.from_dict(BASE)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"rope_scaling": None}, id="original, null"),
        pytest.param({"rope_scaling": {"rope_type": "default"}}, id="original, default"),
        pytest.param(
            {
                "rope_scaling": None,
                "rope_theta": None,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            id="newer",
        ),
    ],
)
def test_default_rope_scales_nothing(changes: Changes) -> None:
    rope = ModelConfig.from_dict(BASE | changes).rope
    assert not rope.is_longrope
    assert rope.theta == 10000.0
    assert rope.short_factor == rope.long_factor == (1.0,) * 8
    assert rope.short_mscale == rope.long_mscale == 1.0
    assert rope.original_max_position_embeddings is None


@pytest.mark.parametrize("place", ["top", "rope"])
def test_original_max_may_stand_in_either_place(place: str) -> None:
    key = "original_max_position_embeddings"
    values = without(BASE, key) if place == "rope" else BASE | {"rope_scaling": without(LONGROPE, key)}
    assert ModelConfig.from_dict(values) == ModelConfig.from_dict(BASE)


def test_absent_optional_keys_take_the_architecture_defaults() -> None:
    keys = ("sliding_window", "attention_bias", "lm_head_bias", "tie_word_embeddings", "router_jitter_noise")
    config = ModelConfig.from_dict(
        without(BASE, *keys, "torch_dtype", "architectures", "eos_token_id", "bos_token_id")
    )
    assert config.sliding_window is None
    assert not (config.attention_bias or config.lm_head_bias or config.tie_word_embeddings)
    assert config.router_jitter == 0.01
    assert (config.stored_dtype, config.bos_token_id, config.eos_token_ids) == (None, None, ())


@pytest.mark.parametrize(
    ("generation", "bos", "eos"),
    [
        pytest.param({"eos_token_id": [5, 3, 5], "bos_token_id": 2}, 2, (5, 3), id="list"),
        pytest.param({"eos_token_id": 7}, 1, (7,), id="single"),
        pytest.param({"eos_token_id": None}, 1, (3,), id="null falls back"),
        pytest.param({}, 1, (3,), id="absent falls back"),
    ],
)
def test_generation_config_names_the_ending_tokens(
    generation: Changes, bos: int, eos: tuple[int, ...]
) -> None:
    config = ModelConfig.from_dict(BASE, generation)
    assert (config.bos_token_id, config.eos_token_ids) == (bos, eos)


def test_config_is_hashable_and_pickles() -> None:
    config = ModelConfig.from_dict(BASE)
    assert pickle.loads(pickle.dumps(config)) == config
    assert len({config, ModelConfig.from_dict(dict(BASE))}) == 1


@pytest.mark.parametrize("preset", ["mid", "phi-3.5-moe"])
def test_a_config_written_is_the_config_read(preset: str) -> None:
    config = preset_config(preset)
    written = json.loads(json.dumps(original_dialect(config)))
    assert ModelConfig.from_dict(written, {"eos_token_id": list(config.eos_token_ids)}) == config


@pytest.mark.parametrize("spec", small_checkpoints.CATALOGUE, ids=lambda spec: spec.name)
def test_every_small_checkpoint_config_loads(spec: small_checkpoints.Spec) -> None:
    config = ModelConfig.from_dict(small_checkpoints.config(spec))
    assert config.hidden_size == spec.num_heads * spec.head_dim
    assert config.rope.is_longrope == (spec.rope_type == "longrope")
    assert config.router_jitter == spec.jitter


ILLEGAL = [
    pytest.param({"vocab_size": None}, "vocab_size", "missing", id="missing size"),
    pytest.param({"hidden_size": 0}, "hidden_size", "0", id="zero size"),
    pytest.param({"num_hidden_layers": -1}, "num_hidden_layers", "-1", id="negative size"),
    pytest.param({"intermediate_size": 48.0}, "intermediate_size", "48.0", id="float for an integer"),
    pytest.param({"vocab_size": True}, "vocab_size", "true", id="bool for an integer"),
    pytest.param({"vocab_size": 10**30}, "vocab_size", str(10**30), id="absurd size"),
    pytest.param({"max_position_embeddings": "512"}, "max_position_embeddings", '"512"', id="text"),
    pytest.param({"num_attention_heads": 5}, "num_attention_heads", "5", id="heads do not divide hidden"),
    pytest.param({"num_attention_heads": 64}, "num_attention_heads", "64", id="odd head"),
    pytest.param({"num_key_value_heads": 3}, "num_key_value_heads", "3", id="kv heads do not divide heads"),
    pytest.param({"head_dim": 32}, "head_dim", "32", id="another head_dim"),
    pytest.param({"num_local_experts": 8}, "num_local_experts", "8", id="8 experts"),
    pytest.param({"num_experts_per_tok": 1}, "num_experts_per_tok", "1", id="top 1"),
    pytest.param({"hidden_act": "gelu"}, "hidden_act", '"gelu"', id="activation"),
    pytest.param({"model_type": "mixtral"}, "model_type", '"mixtral"', id="model type"),
    pytest.param({"model_type": None}, "model_type", "missing", id="no model type"),
    pytest.param(
        {"architectures": ["PhimoeForSequenceClassification"]},
        "architectures",
        '["PhimoeForSequenceClassification"]',
        id="architecture",
    ),
    pytest.param(
        {"architectures": "PhiMoEForCausalLM"}, "architectures", '"PhiMoEForCausalLM"', id="no list"
    ),
    pytest.param({"rms_norm_eps": 0}, "rms_norm_eps", "0", id="zero eps"),
    pytest.param({"rms_norm_eps": float("nan")}, "rms_norm_eps", "NaN", id="nan"),
    pytest.param({"rope_theta": float("inf")}, "rope_theta", "Infinity", id="infinity"),
    pytest.param({"rope_theta": None}, "rope_theta", "missing", id="no theta"),
    pytest.param({"router_jitter_noise": -0.1}, "router_jitter_noise", "-0.1", id="negative jitter"),
    pytest.param({"router_jitter_noise": False}, "router_jitter_noise", "false", id="bool for a number"),
    pytest.param({"sliding_window": 0}, "sliding_window", "0", id="empty window"),
    pytest.param({"attention_bias": 1}, "attention_bias", "1", id="integer for a bool"),
    pytest.param({"torch_dtype": "float64"}, "torch_dtype", '"float64"', id="dtype"),
    pytest.param({"eos_token_id": 300}, "eos_token_id", "300", id="eos beyond the vocabulary"),
    pytest.param({"bos_token_id": -1}, "bos_token_id", "-1", id="negative bos"),
    pytest.param({"rope_scaling": "longrope"}, "rope_scaling", '"longrope"', id="rope as text"),
    pytest.param(scaling(type="yarn"), "rope_scaling.type", '"yarn"', id="rope type"),
    pytest.param(scaling(type=None), "rope_scaling.rope_type", "missing", id="no rope type"),
    pytest.param(
        scaling(short_factor=[1.0] * 7), "rope_scaling.short_factor", "a list of 7", id="short list"
    ),
    pytest.param(scaling(long_factor=[1.0] * 9), "rope_scaling.long_factor", "a list of 9", id="long list"),
    pytest.param(scaling(long_factor=None), "rope_scaling.long_factor", "missing", id="no list"),
    pytest.param(
        scaling(short_factor=[1.0] * 7 + [0]), "rope_scaling.short_factor[7]", "0", id="zero factor"
    ),
    pytest.param(scaling(long_factor=[True] * 8), "rope_scaling.long_factor[0]", "true", id="bool factor"),
    pytest.param(scaling(short_mscale=None), "rope_scaling.short_mscale", "missing", id="no mscale"),
    pytest.param(scaling(long_mscale="1.2"), "rope_scaling.long_mscale", '"1.2"', id="mscale as text"),
    pytest.param(
        scaling(original_max_position_embeddings=128),
        "rope_scaling.original_max_position_embeddings",
        "128",
        id="two original lengths",
    ),
    pytest.param(
        scaling(partial_rotary_factor=0.5), "rope_scaling.partial_rotary_factor", "0.5", id="partial rotary"
    ),
    pytest.param(
        {"rope_parameters": LONGROPE | {"long_mscale": 2.0}},
        "rope_scaling",
        None,
        id="dialects that disagree",
    ),
]


@pytest.mark.parametrize(("changes", "key", "found"), ILLEGAL)
def test_an_illegal_value_is_named_with_its_file(changes: Changes, key: str, found: str | None) -> None:
    with pytest.raises(ConfigError) as raised:
        ModelConfig.from_dict(BASE | changes, directory="/models/some")
    error = raised.value
    assert (error.file, error.key) == ("/models/some/config.json", key)
    assert found is None or error.found == found
    assert str(error) == f"{error.file}: {key} is {error.found}, expected {error.expected}"


def test_an_illegal_ending_token_is_blamed_on_its_own_file() -> None:
    with pytest.raises(ConfigError, match=r"^generation_config\.json: eos_token_id is \[3, 300\], expected"):
        ModelConfig.from_dict(BASE, {"eos_token_id": [3, 300]})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b'{"vocab_size": ', "is not valid JSON", id="cut"),
        pytest.param(b"\xff\xfe\x00", "is not valid JSON", id="binary"),
        pytest.param(b"[1, 2]", "holds [1, 2], expected a JSON object", id="list"),
        pytest.param(b"[" * 100_000, "is not valid JSON", id="deep"),
        pytest.param(None, "cannot be read (No such file or directory)", id="absent"),
    ],
)
def test_an_unreadable_config_file_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UnreadableFileError) as raised:
        ModelConfig.from_directory(tmp_path)
    assert raised.value.file == str(tmp_path / "config.json")
    assert raised.value.reason.startswith(reason)


def test_a_directory_without_generation_config_loads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    assert ModelConfig.from_directory(tmp_path) == ModelConfig.from_dict(BASE)


def test_a_broken_generation_config_is_no_absent_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UnreadableFileError, match="generation_config"):
        ModelConfig.from_directory(tmp_path)
