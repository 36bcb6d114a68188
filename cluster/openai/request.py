"""A request after parsing (`ParsedRequest`) and after tokenizing (`SequenceRequest`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from actors.protocol.messages import SamplingParams
from cluster.openai.fields.bodies import RequestFields
from cluster.openai.fields.output import OutputOptions, StreamOptions
from cluster.openai.fields.sampling import SamplingFields
from cluster.openai.kinds.special import Prompt

Kind = Literal["completion", "chat"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatInput:
    """What the chat template is given."""

    messages: tuple[dict[str, Any], ...]
    """Each with "role" and "content" (a string), and "name" if the client gave one."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: dict[str, Any] = field(default_factory=dict)


class ParsedRequest(RequestFields, frozen=True, kw_only=True):
    """One request, checked for everything that can be checked without the tokenizer."""

    kind: Kind
    prompts: tuple[Prompt, ...] = ()
    """Completions: texts or token ids, at least one. Chat: empty."""
    chat: ChatInput | None = None
    """Chat only."""
    sampling: SamplingFields = SamplingFields()
    output: OutputOptions = OutputOptions()
    stream_options: StreamOptions = StreamOptions()


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
