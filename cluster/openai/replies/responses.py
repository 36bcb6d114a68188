"""Turns assembled choices into OpenAI's answers, whole or as the chunks of a stream. Pure.

`encoding` turns the answers into bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.openai.replies.assembler import OutputPiece
from cluster.openai.replies.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from cluster.openai.request import Kind, ParsedRequest, SequenceRequest
from cluster.tokenizer import Tokenizer

JsonObject = dict[str, Any]
Choice = tuple[SequenceRequest, OutputPiece]
"""A sequence and its output: a piece of a stream, or all of the output (`assembler.merged`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseHead:
    """The values that all chunks of an answer share."""

    response_id: str
    created: int
    """Unix time in seconds."""
    model: str
    """The name under which the model is served."""


def response_id(kind: Kind, request_id: str) -> str:
    """Return the `id` of an answer."""
    return f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{request_id}"


def full_response(
    kind: Kind, head: ResponseHead, choices: Sequence[Choice], tokenizer: Tokenizer
) -> JsonObject:
    """Return an answer that is not streamed."""
    build = chat_response if kind == "chat" else completion_response
    return build(head, choices, tokenizer)


def completion_response(head: ResponseHead, choices: Sequence[Choice], tokenizer: Tokenizer) -> JsonObject:
    """Return the answer of /v1/completions. `choices` are sorted by index, each with all of its output."""
    return {
        **_head(head, "text_completion"),
        "choices": [
            _completion_choice(sequence, piece, tokenizer, is_chunk=False) for sequence, piece in choices
        ],
        "usage": _total_usage(choices),
    }


def completion_chunk(
    head: ResponseHead, sequence: SequenceRequest, piece: OutputPiece, tokenizer: Tokenizer
) -> JsonObject:
    """Return one chunk of a streamed /v1/completions, without usage."""
    choice = _completion_choice(sequence, piece, tokenizer, is_chunk=True)
    return {**_head(head, "text_completion"), "choices": [choice]}


def chat_response(head: ResponseHead, choices: Sequence[Choice], tokenizer: Tokenizer) -> JsonObject:
    """Return the answer of /v1/chat/completions.

    `choices` are sorted by index, each with all of its output.
    """
    sequence, piece = choices[0]
    body = {
        **_head(head, "chat.completion"),
        "choices": [_chat_choice(sequence, piece, tokenizer) for sequence, piece in choices],
        "usage": _total_usage(choices),
    }
    if sequence.output.prompt_logprobs is not None:
        body["prompt_logprobs"] = prompt_logprobs(tokenizer, sequence, piece.prompt_logprobs or ())
    if sequence.output.return_token_ids:
        body["prompt_token_ids"] = list(sequence.prompt_ids)
    return body


def chat_role_chunk(head: ResponseHead, sequence: SequenceRequest) -> JsonObject:
    """Return the first chunk of a choice of a streamed /v1/chat/completions: the role and the echoed text."""
    delta = {"role": "assistant", "content": sequence.echo_text}
    body = {
        **_head(head, "chat.completion.chunk"),
        "choices": [{"index": sequence.index, "delta": delta, "logprobs": None, "finish_reason": None}],
    }
    if sequence.output.return_token_ids:
        body["prompt_token_ids"] = list(sequence.prompt_ids)
    return body


def chat_chunk(
    head: ResponseHead, sequence: SequenceRequest, piece: OutputPiece, tokenizer: Tokenizer
) -> JsonObject:
    """Return a further chunk of a choice of a streamed /v1/chat/completions, without usage."""
    has_logprobs = sequence.output.logprobs is not None and piece.logprobs
    choice: JsonObject = {
        "index": sequence.index,
        "delta": {"content": piece.text} if piece.text else {},
        "logprobs": chat_logprobs(tokenizer, sequence, piece) if has_logprobs else None,
        "finish_reason": piece.finish_reason,
    }
    if piece.finish_reason is not None:
        choice["stop_reason"] = piece.stop_reason
    if sequence.output.return_token_ids:
        choice["token_ids"] = list(piece.token_ids)
    return {**_head(head, "chat.completion.chunk"), "choices": [choice]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """The token counts of a whole answer."""

    num_prompt_tokens: int
    """Tokens of all prompts. A prompt counts once, however many choices it has."""
    num_cached_tokens: int
    """Prompt tokens found in the cache: for each prompt, the smallest number among its choices."""
    num_completion_tokens: int

    def to_json(self) -> JsonObject:
        """Return OpenAI's `usage` object."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_completion_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }


class UsageCount:
    """Counts the usage of one answer, piece by piece."""

    def __init__(self, sequences: Sequence[SequenceRequest]) -> None:
        self._prompts = {sequence.prompt_index: len(sequence.prompt_ids) for sequence in sequences}
        self._num_tokens: dict[int, int] = {}
        self._num_cached: dict[int, dict[int, int]] = {}

    def add(self, sequence: SequenceRequest, piece: OutputPiece) -> None:
        """Count the newest piece of a choice."""
        self._num_tokens[sequence.index] = piece.num_tokens
        self._num_cached.setdefault(sequence.prompt_index, {})[sequence.index] = piece.num_cached_tokens

    @property
    def total(self) -> Usage:
        """The usage so far."""
        return Usage(
            num_prompt_tokens=sum(self._prompts.values()),
            num_cached_tokens=sum(min(choices.values()) for choices in self._num_cached.values()),
            num_completion_tokens=sum(self._num_tokens.values()),
        )


class StreamChunks:
    """Makes the chunks of one streamed answer.

    Call `opening()`, `chunk(...)` for every piece, then `closing()`.
    """

    def __init__(
        self,
        parsed: ParsedRequest,
        head: ResponseHead,
        sequences: Sequence[SequenceRequest],
        tokenizer: Tokenizer,
    ) -> None:
        self._head, self._sequences, self._tokenizer = head, sequences, tokenizer
        self._is_chat = parsed.kind == "chat"
        self._options = parsed.stream_options
        self._usage = UsageCount(sequences)

    def opening(self) -> list[JsonObject]:
        """Return the chunks that begin a stream: for a chat, one per choice with its role."""
        if not self._is_chat:
            return []
        return [self._with_usage(chat_role_chunk(self._head, sequence)) for sequence in self._sequences]

    def chunk(self, sequence: SequenceRequest, piece: OutputPiece) -> JsonObject:
        """Return the chunk for one piece of one choice."""
        self._usage.add(sequence, piece)
        build = chat_chunk if self._is_chat else completion_chunk
        return self._with_usage(build(self._head, sequence, piece, self._tokenizer))

    def closing(self) -> list[JsonObject]:
        """Return the chunks that end a stream before [DONE]: one with usage and no choices, if asked for."""
        if not self._options.include_usage:
            return []
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return [{**_head(self._head, kind), "choices": [], "usage": self._usage.total.to_json()}]

    def _with_usage(self, body: JsonObject) -> JsonObject:
        """Add the usage so far if every chunk must have it, or null if only the last chunk has usage."""
        if self._options.continuous_usage_stats:
            body["usage"] = self._usage.total.to_json()
        elif self._options.include_usage:
            body["usage"] = None
        return body


def _completion_choice(
    sequence: SequenceRequest, piece: OutputPiece, tokenizer: Tokenizer, is_chunk: bool
) -> JsonObject:
    output = sequence.output
    choice: JsonObject = {
        "index": sequence.index,
        "text": sequence.echo_text + piece.text if piece.is_first else piece.text,
        "logprobs": None if output.logprobs is None else completion_logprobs(tokenizer, sequence, piece),
        "finish_reason": piece.finish_reason,
        "stop_reason": piece.stop_reason,
    }
    if output.prompt_logprobs is not None and not is_chunk:
        choice["prompt_logprobs"] = prompt_logprobs(tokenizer, sequence, piece.prompt_logprobs or ())
    if output.return_token_ids:
        choice["token_ids"] = list(piece.token_ids)
        if piece.is_first:
            choice["prompt_token_ids"] = list(sequence.prompt_ids)
    return choice


def _chat_choice(sequence: SequenceRequest, piece: OutputPiece, tokenizer: Tokenizer) -> JsonObject:
    output = sequence.output
    choice: JsonObject = {
        "index": sequence.index,
        "message": {"role": "assistant", "content": sequence.echo_text + piece.text, "refusal": None},
        "logprobs": None if output.logprobs is None else chat_logprobs(tokenizer, sequence, piece),
        "finish_reason": piece.finish_reason,
        "stop_reason": piece.stop_reason,
    }
    if output.return_token_ids:
        choice["token_ids"] = list(piece.token_ids)
    return choice


def _total_usage(choices: Sequence[Choice]) -> JsonObject:
    count = UsageCount([sequence for sequence, _ in choices])
    for sequence, piece in choices:
        count.add(sequence, piece)
    return count.total.to_json()


def _head(head: ResponseHead, kind: str) -> JsonObject:
    return {"id": head.response_id, "object": kind, "created": head.created, "model": head.model}
