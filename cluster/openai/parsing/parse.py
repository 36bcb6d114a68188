"""OpenAI's request bodies -> `ParsedRequest`. Pure; knows neither tokenizer nor model.

A field that would change the output and is not supported is refused by name; its neutral value is accepted.
"""

from __future__ import annotations

from typing import Any

from cluster.errors import InvalidRequest, UnsupportedParameter
from cluster.openai.limits import Limits
from cluster.openai.parsing import ranges
from cluster.openai.parsing.conversation import parse_conversation
from cluster.openai.parsing.fields import Fields, checked_int, checked_number, checked_text, shown
from cluster.openai.parsing.ranges import (
    MAX_COUNT,
    MAX_LOGIT_BIAS,
    MAX_MODEL_CHARS,
    MAX_SALT_CHARS,
    MAX_TOKEN_ID,
    MIN_LOGIT_BIAS,
)
from cluster.openai.request import OutputOptions, ParsedRequest, Prompt, SamplingFields, StreamOptions

IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Accepted without effect: they do not change the output."""

UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "chat_template": (),
    "documents": (),
    "early_stopping": (False,),
    "function_call": ("none",),
    "functions": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "length_penalty": (1, 1.0),
    "logits_processors": (),
    "modalities": (["text"],),
    "no_repeat_ngram_size": (0,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": (),
    "typical_p": (1, 1.0),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}
"""Known and not supported, each with the values (beside null) that ask for nothing."""


def parse_completion(body: object, limits: Limits) -> ParsedRequest:
    """The body of /v1/completions. Raises InvalidRequest, whose `param` is the field to blame."""
    fields = Fields(body)
    model = fields.text("model", MAX_MODEL_CHARS)
    prompts = _prompts(fields, limits)
    n = _num_choices(fields, limits)
    if len(prompts) * n > limits.max_choices:
        raise InvalidRequest(f"n: {len(prompts)} prompts times {n} are more than {limits.max_choices}", "n")
    echo = fields.boolean("echo", False)
    sampling = _sampling(fields, limits, min_max_tokens=0 if echo else 1)
    logprobs = fields.integer("logprobs", 0, limits.max_logprobs)
    stream = fields.boolean("stream", False)
    parsed = ParsedRequest(
        kind="completion",
        model=model,
        prompts=prompts,
        n=n,
        sampling=sampling,
        output=_output(fields, limits, echo=echo, logprobs=logprobs, stream=stream),
        stream=stream,
        stream_options=_stream_options(fields, stream),
        add_special_tokens=fields.boolean("add_special_tokens", True),
        truncate_prompt_tokens=_truncation(fields),
        request_id=_request_id(fields, limits),
        priority=fields.integer("priority", -limits.max_priority, limits.max_priority, 0),
        timeout_seconds=fields.number("timeout", 0, limits.max_timeout_seconds, is_low_open=True),
        cache_salt=_cache_salt(fields),
    )
    fields.finish(UNSUPPORTED, IGNORED)
    return parsed


def parse_chat(body: object, limits: Limits) -> ParsedRequest:
    """The body of /v1/chat/completions. Raises InvalidRequest, whose `param` is the field to blame."""
    fields = Fields(body)
    model = fields.text("model", MAX_MODEL_CHARS)
    chat = parse_conversation(fields, limits)
    n = _num_choices(fields, limits)
    echo = fields.boolean("echo", False)
    sampling = _sampling(fields, limits, min_max_tokens=1)
    logprobs = _chat_logprobs(fields, limits)
    stream = fields.boolean("stream", False)
    parsed = ParsedRequest(
        kind="chat",
        model=model,
        chat=chat,
        n=n,
        sampling=sampling,
        output=_output(fields, limits, echo=echo, logprobs=logprobs, stream=stream),
        stream=stream,
        stream_options=_stream_options(fields, stream),
        add_special_tokens=fields.boolean("add_special_tokens", False),
        truncate_prompt_tokens=_truncation(fields),
        request_id=_request_id(fields, limits),
        priority=fields.integer("priority", -limits.max_priority, limits.max_priority, 0),
        timeout_seconds=fields.number("timeout", 0, limits.max_timeout_seconds, is_low_open=True),
        cache_salt=_cache_salt(fields),
    )
    fields.finish(UNSUPPORTED, IGNORED)
    return parsed


def parse_timeout_header(text: str, limits: Limits) -> float:
    """The value of X-Request-Timeout, in seconds. Raises InvalidRequest."""
    try:
        value = float(text)
    except ValueError:
        raise InvalidRequest(f"x-request-timeout: {shown(text)} is not a number of seconds") from None
    return checked_number("x-request-timeout", value, 0, limits.max_timeout_seconds, is_low_open=True)


def checked_ids(name: str, values: list[Any]) -> tuple[int, ...]:
    """Token ids, not yet compared with a vocabulary."""
    for value in values:
        if type(value) is not int or not 0 <= value <= MAX_TOKEN_ID:
            raise InvalidRequest(f"{name}: {shown(value)} is not a token id", name)
    return tuple(values)


def _prompts(fields: Fields, limits: Limits) -> tuple[Prompt, ...]:
    """A text, a list of texts, token ids, or a list of lists of token ids."""
    value = fields.required("prompt")
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        value = [value]
    elif not isinstance(value, list):
        raise InvalidRequest(
            f"prompt: {shown(value)} is not a string, a list of strings, token ids or a list of token ids",
            "prompt",
        )
    if not value:
        raise InvalidRequest("prompt: is empty", "prompt")
    if len(value) > limits.max_prompts:
        raise InvalidRequest(f"prompt: {len(value)} prompts are more than {limits.max_prompts}", "prompt")
    if len({type(part) for part in value}) > 1:
        raise InvalidRequest("prompt: mixes texts and token ids", "prompt")
    return tuple(_prompt(part, limits) for part in value)


def _prompt(value: object, limits: Limits) -> Prompt:
    if value in ("", []):
        raise InvalidRequest("prompt: is empty", "prompt")
    if isinstance(value, list):
        return checked_ids("prompt", value)
    return checked_text("prompt", value, limits.max_prompt_chars)


def _num_choices(fields: Fields, limits: Limits) -> int:
    n = fields.integer("n", 1, limits.max_n, 1)
    best_of = fields.integer("best_of", 1, limits.max_n, n)
    if best_of != n:
        raise UnsupportedParameter(
            f"best_of: {best_of} is not supported by this server unless n is the same", "best_of"
        )
    return n


def _sampling(fields: Fields, limits: Limits, min_max_tokens: int) -> SamplingFields:
    seed, top_k = ranges.integer(fields, "seed"), ranges.integer(fields, "top_k")
    stop_token_ids = checked_ids("stop_token_ids", fields.items("stop_token_ids", limits.max_stop_token_ids))
    return SamplingFields(
        max_tokens=_max_tokens(fields, min_max_tokens),
        min_tokens=ranges.integer(fields, "min_tokens") or 0,
        temperature=ranges.number(fields, "temperature"),
        top_p=ranges.number(fields, "top_p"),
        top_k=None if top_k is None else max(top_k, 0),
        min_p=ranges.number(fields, "min_p"),
        frequency_penalty=ranges.number(fields, "frequency_penalty") or 0.0,
        presence_penalty=ranges.number(fields, "presence_penalty") or 0.0,
        repetition_penalty=ranges.number(fields, "repetition_penalty"),
        seed=None if seed is None else seed % 2**64,
        stop_token_ids=tuple(dict.fromkeys(stop_token_ids)),
        ignore_eos=fields.boolean("ignore_eos", False),
        logit_bias=_logit_bias(fields, limits),
    )


def _max_tokens(fields: Fields, low: int) -> int | None:
    old = fields.integer("max_tokens", low, MAX_COUNT)
    new = fields.integer("max_completion_tokens", low, MAX_COUNT)
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            f"max_completion_tokens: {new} differs from max_tokens {old}", "max_completion_tokens"
        )
    return old if new is None else new


def _logit_bias(fields: Fields, limits: Limits) -> dict[int, float]:
    value = fields.take("logit_bias")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"logit_bias: {shown(value)} is not an object", "logit_bias")
    if len(value) > limits.max_logit_bias:
        raise InvalidRequest(
            f"logit_bias: {len(value)} entries are more than {limits.max_logit_bias}", "logit_bias"
        )
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidRequest(f"logit_bias: {shown(key)} is not a token id", "logit_bias")
        token_id = checked_int("logit_bias", int(key), 0, MAX_TOKEN_ID)
        biases[token_id] = checked_number("logit_bias", bias, MIN_LOGIT_BIAS, MAX_LOGIT_BIAS)
    return biases


def _chat_logprobs(fields: Fields, limits: Limits) -> int | None:
    is_wanted = fields.boolean("logprobs", False)
    top = fields.integer("top_logprobs", 0, limits.max_logprobs)
    if top and not is_wanted:
        raise InvalidRequest(f"top_logprobs: {top} needs logprobs to be true", "top_logprobs")
    return (top or 0) if is_wanted else None


def _output(
    fields: Fields, limits: Limits, *, echo: bool, logprobs: int | None, stream: bool
) -> OutputOptions:
    prompt_logprobs = fields.integer("prompt_logprobs", 0, limits.max_logprobs)
    if prompt_logprobs is not None and stream:
        raise InvalidRequest(
            f"prompt_logprobs: {prompt_logprobs} is not possible with stream", "prompt_logprobs"
        )
    return OutputOptions(
        stop=_stop(fields, limits),
        include_stop_str_in_output=fields.boolean("include_stop_str_in_output", False),
        skip_special_tokens=fields.boolean("skip_special_tokens", True),
        echo=echo,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        return_token_ids=fields.boolean("return_token_ids", False),
        return_tokens_as_token_ids=fields.boolean("return_tokens_as_token_ids", False),
    )


def _stop(fields: Fields, limits: Limits) -> tuple[str, ...]:
    value = fields.take("stop")
    if value is None:
        return ()
    stops = value if isinstance(value, list) else [value]
    if len(stops) > limits.max_stop_strings:
        raise InvalidRequest(f"stop: {len(stops)} strings are more than {limits.max_stop_strings}", "stop")
    if "" in stops:
        raise InvalidRequest(
            "stop: '' would stop everything; expected strings of at least one character", "stop"
        )
    return tuple(dict.fromkeys(checked_text("stop", stop, limits.max_stop_chars) for stop in stops))


def _stream_options(fields: Fields, stream: bool) -> StreamOptions:
    if fields.has("stream_options") and not stream:
        raise InvalidRequest("stream_options: is only possible with stream", "stream_options")
    members = fields.members("stream_options")
    options = StreamOptions(
        include_usage=members.boolean("include_usage", False),
        continuous_usage_stats=members.boolean("continuous_usage_stats", False),
    )
    members.finish({"include_obfuscation": (False,)})
    return options


def _truncation(fields: Fields) -> int | None:
    kept = ranges.integer(fields, "truncate_prompt_tokens")
    if kept == 0:
        raise InvalidRequest(
            "truncate_prompt_tokens: 0 leaves nothing of the prompt", "truncate_prompt_tokens"
        )
    return kept


def _cache_salt(fields: Fields) -> str:
    value = fields.text("cache_salt", MAX_SALT_CHARS)
    if value == "":
        raise InvalidRequest("cache_salt: '' is no salt; expected at least one character", "cache_salt")
    return value or ""


def _request_id(fields: Fields, limits: Limits) -> str | None:
    value = fields.text("request_id", limits.max_request_id_chars)
    if value is not None and not (value.isascii() and value.isprintable() and value.strip() == value != ""):
        raise InvalidRequest(f"request_id: {shown(value)} is not printable ASCII", "request_id")
    return value
