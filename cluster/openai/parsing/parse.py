"""Turns the bodies of completions and chat requests into a `ParsedRequest`. Pure: no tokenizer, no model.

`cluster.openai.fields` says what each field may be by itself. The rules for several fields together are here.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from cluster.config.request_limits import Limits
from cluster.errors import InvalidRequest, UnsupportedParameter
from cluster.kinds.kind import shown
from cluster.openai.fields.bodies import CHAT, COMPLETION, ECHO, TIMEOUT, GenerationFields, RequestFields
from cluster.openai.fields.output import OutputOptions, StreamOptions
from cluster.openai.fields.sampling import SamplingFields
from cluster.openai.parsing.conversation import chat_input
from cluster.openai.request import ParsedRequest

_SHARED = RequestFields.__struct_fields__


def parse_completion(body: object, limits: Limits) -> ParsedRequest:
    """Parse the body of /v1/completions. Raises InvalidRequest, whose `param` is the wrong field."""
    is_echo = isinstance(body, dict) and body.get("echo") is True
    fields = (ECHO if is_echo else COMPLETION).read("", body, limits)
    num_prompts = len(fields.prompts)
    if num_prompts * fields.n > limits.max_choices:
        raise InvalidRequest(
            f"n: {num_prompts} prompts times {fields.n} are more than {limits.max_choices}", "n"
        )
    output = replace(fields.output, logprobs=fields.logprobs)
    return ParsedRequest(kind="completion", prompts=fields.prompts, **_common(fields, output))


def parse_chat(body: object, limits: Limits) -> ParsedRequest:
    """Parse the body of /v1/chat/completions. Raises InvalidRequest, whose `param` is the wrong field."""
    fields = CHAT.read("", body, limits)
    num_top = fields.top_logprobs or 0
    if num_top and not fields.logprobs:
        raise InvalidRequest(f"top_logprobs: {num_top} needs logprobs to be true", "top_logprobs")
    output = replace(fields.output, logprobs=num_top if fields.logprobs else None)
    chat = chat_input(fields.conversation, limits)
    return ParsedRequest(kind="chat", chat=chat, **_common(fields, output))


def parse_timeout_header(text: str, limits: Limits) -> float:
    """Return the value of the header X-Request-Timeout, in seconds. Raises InvalidRequest."""
    try:
        value = float(text)
    except ValueError:
        raise InvalidRequest(f"x-request-timeout: {shown(text)} is not a number of seconds") from None
    return TIMEOUT.read("x-request-timeout", value, limits)


def _common(fields: GenerationFields, output: OutputOptions) -> dict[str, Any]:
    """Return the arguments of `ParsedRequest` that completions and chat share. Raises InvalidRequest."""
    if fields.best_of is not None and fields.best_of != fields.n:
        raise UnsupportedParameter(
            f"best_of: {fields.best_of} is not supported by this server unless n is the same", "best_of"
        )
    if output.prompt_logprobs is not None and fields.stream:
        raise InvalidRequest(
            f"prompt_logprobs: {output.prompt_logprobs} is not possible with stream", "prompt_logprobs"
        )
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequest("stream_options: is only possible with stream", "stream_options")
    if fields.truncate_prompt_tokens == 0:
        raise InvalidRequest(
            "truncate_prompt_tokens: 0 leaves nothing of the prompt", "truncate_prompt_tokens"
        )
    return {
        **{name: getattr(fields, name) for name in _SHARED},
        "sampling": _sampling(fields),
        "output": output,
        "stream_options": fields.stream_options or StreamOptions(),
    }


def _sampling(fields: GenerationFields) -> SamplingFields:
    old, new = fields.max_tokens, fields.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            f"max_completion_tokens: {new} differs from max_tokens {old}", "max_completion_tokens"
        )
    return replace(fields.sampling, max_tokens=old if new is None else new)
