"""The bodies of all requests, and the fields that are known but have no effect or are not supported."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cluster.kinds.containers import TokenIds
from cluster.kinds.kind import Limit
from cluster.kinds.objects import Inline, Object
from cluster.kinds.scalars import MAX_COUNT, Boolean, Integer, Number, Pattern, Text
from cluster.openai.fields.conversation import ConversationFields
from cluster.openai.fields.output import LOGPROBS, OutputOptions, StreamOptions
from cluster.openai.fields.sampling import UNSUPPORTED_SAMPLING, SamplingFields
from cluster.openai.fields.special import Prompt, Prompts

TIMEOUT = Number(0, Limit("max_timeout_seconds"), is_low_open=True)
"""A number of seconds, for the field `timeout` and for the header X-Request-Timeout."""
_PRINTABLE = Pattern("[!-~]([ -~]*[!-~])?", "printable ASCII")


class BodyFields(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of every body."""

    model: Annotated[str | None, Text(512), "The served model's name, which is also the default."] = None


class RequestFields(BodyFields, frozen=True, kw_only=True):
    """The fields of every request for generated text that are neither sampling nor output options."""

    n: Annotated[int, Integer(1, Limit("max_n")), "Choices per prompt."] = 1
    stream: Annotated[bool, Boolean(), "Answer with server-sent events."] = False
    add_special_tokens: Annotated[
        bool, Boolean(), "Whether the tokenizer adds its special tokens to a text."
    ] = True
    truncate_prompt_tokens: Annotated[
        int | None,
        Integer(-1, MAX_COUNT),
        "Keep only this many last tokens of the prompt; -1 keeps as many as fit.",
    ] = None
    request_id: Annotated[
        str | None,
        Text(Limit("max_request_id_chars"), pattern=_PRINTABLE),
        "The client's name for the request; the answer's id ends with it.",
    ] = None
    priority: Annotated[
        int, Integer(-Limit("max_priority"), Limit("max_priority")), "Requests with a lower value go first."
    ] = 0
    timeout_seconds: Annotated[
        float | None,
        TIMEOUT,
        "The client's deadline in seconds, from the request's arrival to its last token.",
    ] = msgspec.field(default=None, name="timeout")
    cache_salt: Annotated[
        str,
        Text(256, empty="'' is no salt; expected at least one character"),
        "Cached prefixes are shared only among requests with the same salt.",
    ] = ""


class GenerationFields(RequestFields, frozen=True, kw_only=True):
    """The fields that completions and chat share."""

    sampling: Annotated[SamplingFields, Inline()]
    output: Annotated[OutputOptions, Inline()]
    max_tokens: Annotated[
        int | None, Integer(1, MAX_COUNT), "The longest output in tokens; a chat may fill the context."
    ] = None
    max_completion_tokens: Annotated[
        int | None, Integer(1, MAX_COUNT), "The newer name of max_tokens; if both are sent, they are equal."
    ] = None
    best_of: Annotated[int | None, Integer(1, Limit("max_n")), "Not supported unless it equals n."] = None
    stream_options: Annotated[
        StreamOptions | None,
        Object(StreamOptions, unsupported={"include_obfuscation": (False,)}),
        "How a streamed answer reports usage; only with stream.",
    ] = None


class CompletionFields(GenerationFields, frozen=True, kw_only=True):
    """The body of /v1/completions."""

    prompts: Annotated[
        tuple[Prompt, ...],
        Prompts(Text(Limit("max_prompt_chars"), empty="is empty")),
        "A text, a list of texts, token ids, or a list of token ids.",
    ] = msgspec.field(name="prompt")
    logprobs: Annotated[
        int | None, LOGPROBS, "Report each output token with this many alternatives; 0 is the token alone."
    ] = None


class EchoFields(CompletionFields, frozen=True, kw_only=True):
    """The body of /v1/completions with `echo`. It may ask for zero output tokens."""

    max_tokens: Annotated[
        int | None, Integer(0, MAX_COUNT), "The longest output in tokens, 16 if absent; 0 only with echo."
    ] = None
    max_completion_tokens: Annotated[
        int | None, Integer(0, MAX_COUNT), "The newer name of max_tokens; if both are sent, they are equal."
    ] = None


class ChatFields(GenerationFields, frozen=True, kw_only=True):
    """The body of /v1/chat/completions."""

    conversation: Annotated[ConversationFields, Inline()]
    logprobs: Annotated[bool, Boolean(), "Report each output token's log-probability."] = False
    top_logprobs: Annotated[
        int | None, LOGPROBS, "Alternatives to report for each output token; only with logprobs."
    ] = None
    add_special_tokens: Annotated[
        bool, Boolean(), "Whether the tokenizer adds its special tokens to what the chat template made."
    ] = False


class TokenizeFields(BodyFields, frozen=True, kw_only=True):
    """The fields that both forms of /tokenize share."""

    return_token_strs: Annotated[bool, Boolean(), "Report each token's text as well."] = False


class TokenizeTextFields(TokenizeFields, frozen=True, kw_only=True):
    """The body of /tokenize with a text."""

    text: Annotated[str, Text(Limit("max_prompt_chars")), "The text; send either prompt or messages."] = (
        msgspec.field(name="prompt")
    )
    add_special_tokens: Annotated[
        bool, Boolean(), "Whether the tokenizer adds its special tokens; by default, to a text alone."
    ] = True


class TokenizeChatFields(TokenizeFields, frozen=True, kw_only=True):
    """The body of /tokenize with a conversation."""

    conversation: Annotated[ConversationFields, Inline()]
    add_special_tokens: Annotated[
        bool, Boolean(), "Whether the tokenizer adds its special tokens; by default, to a text alone."
    ] = False


class DetokenizeFields(BodyFields, frozen=True, kw_only=True):
    """The body of /detokenize."""

    token_ids: Annotated[
        tuple[int, ...], TokenIds(Limit("max_prompt_chars")), "Token ids to turn into text."
    ] = msgspec.field(name="tokens")


IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields that are accepted without effect, since they do not change the output."""

UNSUPPORTED: dict[str, tuple[object, ...]] = {
    **UNSUPPORTED_SAMPLING,
    "audio": (),
    "chat_template": (),
    "documents": (),
    "function_call": ("none",),
    "functions": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields that are known but not supported, each with the values, beside null, that ask for nothing."""

_UNSUPPORTED_IN_TOKENIZE: dict[str, tuple[object, ...]] = {
    "chat_template": (),
    "tools": (),
    "mm_processor_kwargs": (),
}

COMPLETION = Object(CompletionFields, ignored=IGNORED, unsupported=UNSUPPORTED)
ECHO = Object(EchoFields, ignored=IGNORED, unsupported=UNSUPPORTED)
CHAT = Object(ChatFields, ignored=IGNORED, unsupported=UNSUPPORTED)
TOKENIZE_TEXT = Object(TokenizeTextFields, ignored=IGNORED, unsupported=_UNSUPPORTED_IN_TOKENIZE)
TOKENIZE_CHAT = Object(TokenizeChatFields, ignored=IGNORED, unsupported=_UNSUPPORTED_IN_TOKENIZE)
DETOKENIZE = Object(DetokenizeFields, ignored=IGNORED)
