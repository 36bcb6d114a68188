"""A request after parsing (`ParsedRequest`), and its sequences after tokenizing (`SequenceRequest`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from actors.protocol.messages import SamplingParams
from cluster.openai.fields.bodies import RequestFields
from cluster.openai.fields.output import OutputOptions, StreamOptions
from cluster.openai.fields.sampling import SamplingFields
from cluster.openai.fields.special import Prompt

Kind = Literal["completion", "chat"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatInput:
    """The input of the chat template."""

    messages: tuple[dict[str, Any], ...]
    """The messages. Each has "role" and "content" (a string), and "name" if the client gave one."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] = field(default_factory=dict)


class ParsedRequest(RequestFields, frozen=True, kw_only=True):
    """One request after all checks that need no tokenizer."""

    kind: Kind
    prompts: tuple[Prompt, ...] = ()
    """For completions, at least one text or list of token ids; for chat, empty."""
    chat: ChatInput | None = None
    """The conversation; None for completions."""
    sampling: SamplingFields = SamplingFields()
    output: OutputOptions = OutputOptions()
    stream_options: StreamOptions = StreamOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceRequest:
    """One sequence to generate, which becomes one choice of the answer."""

    index: int
    """Index of the choice in the answer: prompt_index * n + choice."""
    prompt_index: int
    prompt_ids: tuple[int, ...]
    echo_text: str
    """The text that `echo` puts before the output; empty without echo."""
    params: SamplingParams
    """The engine's parameters, with the seed of this choice."""
    output: OutputOptions
    eos_token_ids: tuple[int, ...]
    """The model's own stop tokens, which end a sequence without a stop_reason."""
    priority: int = 0
    """Sequences with a lower priority value go first."""
    cache_salt: str = ""
    """Cached prefixes are shared only among sequences with the same salt."""
    is_prompt_only: bool = False
    """Whether the client asked for max_tokens 0 with echo.

    The engine then generates one token, which is neither shown nor counted.
    """
