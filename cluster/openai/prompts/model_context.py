"""What the front door knows of the served model: tokenizer, chat template, limits and generation defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actors.checkpoint.fields import Fields, read_json_object
from actors.errors import ConfigError
from cluster.openai.limits import GenerationDefaults, ModelLimits
from cluster.openai.prompts.chat_template import ChatTemplate
from cluster.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelContext:
    """Everything that turns a request into token ids and token ids into an answer."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None where the checkpoint has none; chat requests are then refused."""
    limits: ModelLimits


def load_model_context(directory: str | Path, max_model_len: int) -> ModelContext:
    """Reads the tokenizer's files, config.json and generation_config.json of a checkpoint directory.

    `max_model_len` is what the dense actors say. Raises UnreadableFileError or ConfigError, which name file and key.
    """
    directory = Path(directory)
    tokenizer = Tokenizer.load(directory)
    template = None
    if tokenizer.chat_template is not None:
        try:
            template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens)
        except ValueError as error:
            file = str(directory / "tokenizer_config.json")
            raise ConfigError(file, "chat_template", str(error), "a jinja2 template") from error
    path = directory / "config.json"
    config = read_json_object(path)
    generation = _generation_config(directory)
    limits = ModelLimits(
        max_model_len=max_model_len,
        vocab_size=Fields(config, str(path)).positive_int("vocab_size"),
        eos_token_ids=eos_token_ids(generation) or eos_token_ids(config),
        defaults=generation_defaults(generation, str(directory / "generation_config.json")),
    )
    return ModelContext(tokenizer=tokenizer, template=template, limits=limits)


def eos_token_ids(config: dict[str, object]) -> tuple[int, ...]:
    """eos_token_id, which may be one id, a list, or absent."""
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return tuple(token_id for token_id in ids if type(token_id) is int)


def generation_defaults(config: dict[str, object], file: str) -> GenerationDefaults:
    """The sampling that generation_config.json recommends; nothing of it where it says do_sample: false.

    Raises ConfigError for values outside what a request could ask for.
    """
    if config.get("do_sample") is False:
        return GenerationDefaults()
    none = GenerationDefaults()
    return GenerationDefaults(
        temperature=_number(config, file, "temperature", (0.0, 2.0), none.temperature),
        top_p=_number(config, file, "top_p", (0.0, 1.0), none.top_p),
        top_k=max(int(_number(config, file, "top_k", (-1.0, 2.0**31), none.top_k)), 0),
        min_p=_number(config, file, "min_p", (0.0, 1.0), none.min_p),
        repetition_penalty=_number(config, file, "repetition_penalty", (0.0, 10.0), none.repetition_penalty),
    )


def _generation_config(directory: Path) -> dict[str, object]:
    path = directory / "generation_config.json"
    return read_json_object(path) if path.exists() else {}


def _number(
    config: dict[str, object], file: str, key: str, interval: tuple[float, float], default: float
) -> float:
    value = config.get(key)
    if value is None:
        return default
    low, high = interval
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(file, key, repr(value)[:80], f"a number in [{low:g}, {high:g}]")
    if value == 0 and key in ("top_p", "repetition_penalty"):
        raise ConfigError(file, key, "0", f"a number in (0, {high:g}]")
    return float(value)
