"""Logprobs in the shapes that clients get.

Completions get OpenAI's parallel lists, chats get OpenAI's objects, one per token, and prompts get vLLM's
shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.protocol.messages import TokenLogprobs
from cluster.openai.replies.assembler import OutputPiece
from cluster.openai.request import SequenceRequest
from cluster.tokenizer import IncrementalDecoder, Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot express."""


def token_name(tokenizer: Tokenizer, token_id: int, as_token_id: bool) -> str:
    """Return the token's name in logprobs: its text, or `token_id:N`."""
    return f"token_id:{token_id}" if as_token_id else tokenizer.token_text(token_id)


def completion_logprobs(
    tokenizer: Tokenizer, sequence: SequenceRequest, piece: OutputPiece
) -> dict[str, Any]:
    """Return the `logprobs` of a completions choice for one piece.

    With `echo`, the logprobs of the prompt come before those of the first piece.
    """
    output = sequence.output
    as_token_id, num_top = output.return_tokens_as_token_ids, output.logprobs or 0
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []
    if output.echo and piece.is_first:
        text_offset += prompt_offsets(tokenizer, sequence)
        prompt_logprobs = (None, *(piece.prompt_logprobs or ()))
        for token_id, entry in zip(sequence.prompt_ids, prompt_logprobs, strict=True):
            tokens.append(token_name(tokenizer, token_id, as_token_id))
            token_logprobs.append(None if entry is None else _finite(entry.logprob))
            top_logprobs.append(
                None if entry is None else _top_by_name(tokenizer, entry, num_top, as_token_id)
            )
    for entry in piece.logprobs:
        tokens.append(token_name(tokenizer, entry.token_id, as_token_id))
        token_logprobs.append(_finite(entry.logprob))
        top_logprobs.append(_top_by_name(tokenizer, entry, num_top, as_token_id))
    text_offset += (len(sequence.echo_text) + offset for offset in piece.text_offsets)
    return {
        "text_offset": text_offset,
        "token_logprobs": token_logprobs,
        "tokens": tokens,
        "top_logprobs": top_logprobs,
    }


def chat_logprobs(tokenizer: Tokenizer, sequence: SequenceRequest, piece: OutputPiece) -> dict[str, Any]:
    """Return the `logprobs` of a chat choice for one piece."""
    as_token_id, num_top = sequence.output.return_tokens_as_token_ids, sequence.output.logprobs or 0
    content = []
    for entry in piece.logprobs:
        row = _chat_token(tokenizer, entry.token_id, entry.logprob, as_token_id)
        row["top_logprobs"] = [
            _chat_token(tokenizer, token_id, logprob, as_token_id)
            for token_id, logprob in entry.top[:num_top]
        ]
        content.append(row)
    return {"content": content, "refusal": None}


def prompt_logprobs(
    tokenizer: Tokenizer, sequence: SequenceRequest, entries: Sequence[TokenLogprobs]
) -> list[dict[str, Any] | None]:
    """Return `prompt_logprobs` in vLLM's shape.

    Each prompt token has an object {token id: {logprob, rank, decoded_token}}, except the first, which has
    null.
    """
    num_top = sequence.output.prompt_logprobs or 0
    as_token_id = sequence.output.return_tokens_as_token_ids
    rows: list[dict[str, Any] | None] = [None]
    for entry in entries:
        ranked = [(entry.token_id, entry.logprob, entry.rank)]
        ranked += [
            (token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(entry.top[:num_top], 1)
        ]
        rows.append(
            {
                str(token_id): {
                    "logprob": _finite(logprob),
                    "rank": rank,
                    "decoded_token": token_name(tokenizer, token_id, as_token_id),
                }
                for token_id, logprob, rank in ranked
            }
        )
    return rows


def prompt_offsets(tokenizer: Tokenizer, sequence: SequenceRequest) -> list[int]:
    """Return the offset of each prompt token in the prompt's text, in characters."""
    decoder = IncrementalDecoder(tokenizer, (), sequence.output.skip_special_tokens)
    offsets, offset = [], 0
    for token_id in sequence.prompt_ids:
        offsets.append(min(offset, len(sequence.echo_text)))
        offset += len(decoder.push((token_id,)))
    return offsets


def _top_by_name(
    tokenizer: Tokenizer, entry: TokenLogprobs, num_top: int, as_token_id: bool
) -> dict[str, float]:
    """Return name -> logprob of the token itself and of the `num_top` most likely tokens.

    If several of the most likely tokens have the same name, the most likely one is shown.
    """
    by_name = {token_name(tokenizer, entry.token_id, as_token_id): _finite(entry.logprob)}
    for token_id, logprob in entry.top[:num_top]:
        by_name.setdefault(token_name(tokenizer, token_id, as_token_id), _finite(logprob))
    return by_name


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float, as_token_id: bool) -> dict[str, Any]:
    return {
        "token": token_name(tokenizer, token_id, as_token_id),
        "logprob": _finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
