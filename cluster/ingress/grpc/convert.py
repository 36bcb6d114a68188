"""Converts requests of `phimoe.v1` to HTTP bodies, and pieces of output to responses of `phimoe.v1`.

HTTP and gRPC therefore give the same results. The parser checks the bodies, so ranges and errors are the same
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from actors.protocol.messages import TokenLogprobs
from cluster.errors import InvalidRequest
from cluster.kinds.objects import Object
from cluster.openai.fields.bodies import CHAT, COMPLETION, TOKENIZE_CHAT, TOKENIZE_TEXT
from cluster.openai.replies.assembler import OutputPiece
from cluster.openai.replies.responses import ResponseHead, Usage
from cluster.openai.request import SequenceRequest
from cluster.tokenizer import Tokenizer
from protos import serving_pb2

_FINISH_REASONS = {
    "stop": serving_pb2.FINISH_REASON_STOP,
    "length": serving_pb2.FINISH_REASON_LENGTH,
}


def generate_body(request: serving_pb2.GenerateRequest) -> dict[str, Any]:
    """Return the body of /v1/completions that asks for the same.

    Raises InvalidRequest for an empty Prompt.
    """
    body = _given(request, COMPLETION) | _given(request.sampling, COMPLETION)
    return body | {"prompt": [_prompt(prompt) for prompt in request.prompts], "return_token_ids": True}


def chat_body(request: serving_pb2.ChatRequest) -> dict[str, Any]:
    """Return the body of /v1/chat/completions that asks for the same."""
    body = _given(request, CHAT) | _given(request.sampling, CHAT)
    if "logprobs" in body:
        body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
    return body | {"messages": messages_body(request.messages), "return_token_ids": True}


def tokenize_body(request: serving_pb2.TokenizeRequest) -> dict[str, Any]:
    """Return the body of /tokenize that asks for the same."""
    if request.WhichOneof("input") == "conversation":
        conversation = request.conversation
        body = _given(request, TOKENIZE_CHAT) | _given(conversation, TOKENIZE_CHAT)
        return body | {"messages": messages_body(conversation.messages)}
    return _given(request, TOKENIZE_TEXT) | {"prompt": request.text}


def messages_body(messages: Sequence[serving_pb2.Message]) -> list[dict[str, str]]:
    """Return the `messages` of a chat body."""
    return [{"role": message.role, "content": message.content} for message in messages]


def piece_response(
    head: ResponseHead,
    request_id: str,
    sequence_request: SequenceRequest,
    piece: OutputPiece,
    tokenizer: Tokenizer,
) -> serving_pb2.GenerateResponse:
    """Return one response of a stream, without usage."""
    num_top, num_prompt_top = (
        sequence_request.output.logprobs or 0,
        sequence_request.output.prompt_logprobs or 0,
    )
    response = serving_pb2.GenerateResponse(
        request_id=request_id,
        model=head.model,
        index=sequence_request.index,
        text=sequence_request.echo_text + piece.text if piece.is_first else piece.text,
        token_ids=piece.token_ids,
        logprobs=[_token_logprob(entry, num_top, tokenizer) for entry in piece.logprobs],
        finish_reason=_FINISH_REASONS.get(piece.finish_reason or "", serving_pb2.FINISH_REASON_UNSPECIFIED),
    )
    if sequence_request.output.prompt_logprobs is not None:
        response.prompt_logprobs.extend(
            _token_logprob(entry, num_prompt_top, tokenizer) for entry in piece.prompt_logprobs or ()
        )
    if isinstance(piece.stop_reason, str):
        response.stop_string = piece.stop_reason
    elif piece.stop_reason is not None:
        response.stop_token_id = piece.stop_reason
    return response


def usage_message(usage: Usage) -> serving_pb2.Usage:
    """Return the usage of a whole answer."""
    return serving_pb2.Usage(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_completion_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_completion_tokens,
        cached_tokens=usage.num_cached_tokens,
    )


def _given(message: Message, body: Object[Any]) -> dict[str, Any]:
    """Return the fields of a message that are set, as JSON has them, without fields that hold other messages.

    A field has the same name in the message and in Python; the declaration of the body gives its name in
    JSON.
    """
    given: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is None:
            given[body.json_names[field.name]] = list(value) if field.is_repeated else value
        elif field.message_type.GetOptions().map_entry:
            given[body.json_names[field.name]] = {str(key): entry for key, entry in value.items()}
    return given


def _prompt(prompt: serving_pb2.Prompt) -> str | list[int]:
    content = prompt.WhichOneof("content")
    if content is None:
        raise InvalidRequest("prompts: one of them has neither text nor token_ids", "prompts")
    return prompt.text if content == "text" else list(prompt.token_ids.ids)


def _token_logprob(entry: TokenLogprobs, num_top: int, tokenizer: Tokenizer) -> serving_pb2.TokenLogprob:
    top = [
        serving_pb2.TokenLogprob(
            token_id=token_id, token=tokenizer.token_text(token_id), logprob=logprob, rank=rank
        )
        for rank, (token_id, logprob) in enumerate(entry.top[:num_top], 1)
    ]
    return serving_pb2.TokenLogprob(
        token_id=entry.token_id,
        token=tokenizer.token_text(entry.token_id),
        logprob=entry.logprob,
        rank=entry.rank,
        top=top,
    )
