"""What an ingress replica knows of the served model: tokenizer, chat template, limits and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from actors.checkpoint.fields import Fields, read_json_object
from actors.errors import ConfigError
from actors.protocol.messages import SamplingParams
from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest
from cluster.kinds.objects import Object
from cluster.kinds.scalars import Integer, Number
from cluster.openai.fields.sampling import SamplingFields
from cluster.openai.prompts.chat_template import ChatTemplate
from cluster.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelLimits:
    """The limits and defaults of the served model."""

    max_model_len: int
    """The longest prompt and output together, in tokens."""
    vocab_size: int
    """Rows of the embedding. The valid token ids are 0 <= id < vocab_size."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a sequence unless the request has ignore_eos."""
    defaults: SamplingFields = field(default_factory=SamplingFields)
    """The values that generation_config.json recommends; None for a field without a recommendation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelContext:
    """The parts of a model that turn a request into token ids, and token ids into an answer."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    """The chat template. None if the checkpoint has none; chat requests are then refused."""
    limits: ModelLimits


def load_model_context(directory: str | Path, max_model_len: int) -> ModelContext:
    """Read the tokenizer's files, config.json and generation_config.json of a checkpoint directory.

    `max_model_len` is the context length that the dense actors report. Raises UnreadableFileError or
    ConfigError, which name file and key.
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
    """Return the ids in eos_token_id, which may be one id, a list of ids, or absent."""
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return tuple(token_id for token_id in ids if type(token_id) is int)


def generation_defaults(config: dict[str, object], file: str) -> SamplingFields:
    """Return the sampling values that generation_config.json recommends, or none if it has do_sample: false.

    Raises ConfigError for a value that a request could not ask for.
    """
    if config.get("do_sample") is False:
        return SamplingFields()
    defaults: dict[str, Any] = {
        name: _checked(config[name], file, name, kind)
        for name, kind in _DEFAULTED.items()
        if config.get(name) is not None
    }
    return SamplingFields(**defaults)


def _generation_config(directory: Path) -> dict[str, object]:
    path = directory / "generation_config.json"
    return read_json_object(path) if path.exists() else {}


def _checked(value: object, file: str, name: str, kind: Integer | Number) -> float:
    """Return the checked value of a field of this kind.

    For an integer, the file may have a value such as 50.0, which a request may not have.
    """
    number = Number(kind.low, kind.high) if isinstance(kind, Integer) else kind
    try:
        checked = number.read(name, value, _LIMITS)
    except InvalidRequest as error:
        raise ConfigError(file, name, repr(value)[:80], number.expected(_LIMITS)) from error
    return int(checked) if isinstance(kind, Integer) else checked


def _defaulted_fields() -> dict[str, Integer | Number]:
    """Return sampling field -> kind, for the fields whose default the checkpoint may set.

    Such a field is None if the request does not set it, and the engine has its own default for it.
    """
    required = {item.name for item in msgspec.structs.fields(SamplingParams) if item.required}
    return {
        field.attribute: field.kind
        for field in Object(SamplingFields).fields
        if field.default is None
        and field.attribute not in required
        and isinstance(field.kind, Integer | Number)
    }


_LIMITS = Limits()
_DEFAULTED = _defaulted_fields()
