"""A request after parsing (`ParsedRequest`) and after tokenizing (`SequenceRequest`): what HTTP and gRPC share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from actors.protocol.messages import SamplingParams

Kind = Literal["completion", "chat"]
Prompt = str | tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingFields:
    """The sampling fields as the client sent them; None where it said nothing. Ranges are already checked."""

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """0 means off (a client may also write -1)."""
    min_p: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None
    """0 <= seed < 2**64; negative seeds are taken modulo 2**64."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputOptions:
    """What the answer is to contain."""

    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    echo: bool = False
    """Completions: the prompt comes before the output. Chat: the assistant message that is being continued does."""
    logprobs: int | None = None
    """Alternatives per output token; None reports nothing, 0 the token alone."""
    prompt_logprobs: int | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    """Token strings of logprobs read `token_id:N`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamOptions:
    """How a streamed answer reports usage."""

    include_usage: bool = False
    """One more chunk at the end, with usage and no choices."""
    continuous_usage_stats: bool = False
    """Usage so far in every chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatInput:
    """What the chat template is given."""

    messages: tuple[dict[str, Any], ...]
    """Each with "role" and "content" (a string), and "name" where the client gave one."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedRequest:
    """One request, checked for everything that can be checked without the tokenizer."""

    kind: Kind
    model: str | None
    """As the client wrote it; None where it named none."""
    prompts: tuple[Prompt, ...] = ()
    """Completions: texts or token ids, at least one. Chat: empty."""
    chat: ChatInput | None = None
    """Chat only."""
    n: int = 1
    sampling: SamplingFields = field(default_factory=SamplingFields)
    output: OutputOptions = field(default_factory=OutputOptions)
    stream: bool = False
    stream_options: StreamOptions = field(default_factory=StreamOptions)
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    """Keep only that many last tokens of the prompt; -1 as many as fit."""
    request_id: str | None = None
    """Name that the client chose for the request."""
    priority: int = 0
    """Lower goes first."""
    timeout_seconds: float | None = None
    """The client's own deadline, from the request's arrival to its last token."""
    cache_salt: str = ""
    """Cached prefixes are shared only with requests that have the same one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceRequest:
    """One sequence to generate: one choice of the answer."""

    index: int
    """Index of the choice in the answer: prompt_index * n + choice."""
    prompt_index: int
    prompt_ids: tuple[int, ...]
    echo_text: str
    """What `echo` puts before the output; empty without echo."""
    params: SamplingParams
    """For the engine, seed included."""
    output: OutputOptions
    eos_token_ids: tuple[int, ...]
    """Stop tokens of the model's own: they end a sequence without a stop_reason."""
    priority: int = 0
    """Lower goes first."""
    cache_salt: str = ""
    """Cached prefixes are shared only with sequences that have the same one."""
    is_prompt_only: bool = False
    """max_tokens 0 with echo: the one token that the engine makes is not shown and not counted."""
