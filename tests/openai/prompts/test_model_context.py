import json
from pathlib import Path
from typing import Any

import pytest

import actors.checkpoint
from actors.errors import ConfigError
from cluster.config.request_limits import Limits
from cluster.openai.fields.sampling import SamplingFields
from cluster.openai.parsing.parse import parse_chat
from cluster.openai.prompts.model_context import generation_defaults, load_model_context
from cluster.openai.prompts.prepare import prepare
from tests.openai.small_tokenizers import byte_level_backend, write_checkpoint_files

TINY = Path(actors.checkpoint.__file__).parent / "tiny"


def test_a_directory_without_generation_config_has_the_configs_end(tmp_path: Path) -> None:
    write_checkpoint_files(tmp_path, byte_level_backend())
    limits = load_model_context(tmp_path, 128).limits
    assert (limits.max_model_len, limits.vocab_size, limits.eos_token_ids) == (128, 512, (2,))
    assert limits.defaults == SamplingFields()


def test_generation_config_says_how_to_sample_and_where_to_end(tmp_path: Path) -> None:
    write_checkpoint_files(tmp_path, byte_level_backend())
    config = {"eos_token_id": [3, 2], "temperature": 0.6, "top_k": 50, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    limits = load_model_context(tmp_path, 128).limits
    assert limits.eos_token_ids == (3, 2)
    assert limits.defaults == SamplingFields(temperature=0.6, top_k=50)


def test_without_sampling_nothing_of_it_applies() -> None:
    assert generation_defaults({"do_sample": False, "temperature": 0.1}, "f") == SamplingFields()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temperature": "hot"}, "f: temperature is 'hot', expected a number in [0, 2]"),
        ({"temperature": 9}, "f: temperature is 9, expected a number in [0, 2]"),
        ({"top_p": 0}, "f: top_p is 0, expected a number in (0, 1]"),
        ({"top_k": True}, "f: top_k is True, expected a number in [-1, 2.14748e+09]"),
    ],
)
def test_bad_defaults_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        generation_defaults(config, "f")
    assert str(caught.value) == message


def test_a_bad_template_is_named(tmp_path: Path) -> None:
    write_checkpoint_files(tmp_path, byte_level_backend())
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{% if %}"}')
    with pytest.raises(ConfigError, match=r"chat_template is .*, expected a jinja2 template"):
        load_model_context(tmp_path, 128)


def test_the_embedded_model_takes_a_conversation() -> None:
    model = load_model_context(TINY, 2048)
    body = {"messages": [{"role": "user", "content": "Solve 2x + 3 = 7"}]}
    (sequence,) = prepare(parse_chat(body, Limits()), model, Limits(), lambda: 1)
    text = model.tokenizer.decode(sequence.prompt_ids, skip_special_tokens=False)
    assert text == "<|user|>\nSolve 2x + 3 = 7<|end|>\n<|assistant|>\n"
    assert sequence.params.max_tokens == 2048 - len(sequence.prompt_ids)
    assert model.tokenizer.special_tokens["eos_token"] == "<|endoftext|>"
