"""Protos of `phimoe.v1` <-> the same bodies, sequences and pieces that HTTP works on, so that results are equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.protocol.messages import TokenLogprobs
from cluster.errors import InvalidRequest
from cluster.openai.replies.assembler import OutputPiece
from cluster.openai.replies.responses import ResponseHead, Usage
from cluster.openai.request import SequenceRequest
from cluster.tokenizer import Tokenizer
from protos import serving_pb2

_SAMPLING_FIELDS = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "include_stop_str_in_output",
    "ignore_eos",
    "n",
    "seed",
    "prompt_logprobs",
    "skip_special_tokens",
)
_FINISH_REASONS = {
    "stop": serving_pb2.FINISH_REASON_STOP,
    "length": serving_pb2.FINISH_REASON_LENGTH,
}


def generate_body(request: serving_pb2.GenerateRequest) -> dict[str, Any]:
    """The body of /v1/completions that asks for the same. Raises InvalidRequest for a prompt without content."""
    body = _common_body(request)
    body["prompt"] = [_prompt(prompt) for prompt in request.prompts]
    body["echo"] = request.echo
    if request.HasField("add_special_tokens"):
        body["add_special_tokens"] = request.add_special_tokens
    if request.sampling.HasField("logprobs"):
        body["logprobs"] = request.sampling.logprobs
    return body


def chat_body(request: serving_pb2.ChatRequest) -> dict[str, Any]:
    """The body of /v1/chat/completions that asks for the same."""
    body = _common_body(request)
    body["messages"] = messages_body(request.messages)
    body["continue_final_message"] = request.continue_final_message
    if request.HasField("add_generation_prompt"):
        body["add_generation_prompt"] = request.add_generation_prompt
    if request.sampling.HasField("logprobs"):
        body |= {"logprobs": True, "top_logprobs": request.sampling.logprobs}
    return body


def tokenize_body(request: serving_pb2.TokenizeRequest) -> dict[str, Any]:
    """The body of /tokenize that asks for the same."""
    body: dict[str, Any] = {"model": request.model or None}
    if request.WhichOneof("input") == "conversation":
        body["messages"] = messages_body(request.conversation.messages)
        if request.conversation.HasField("add_generation_prompt"):
            body["add_generation_prompt"] = request.conversation.add_generation_prompt
    else:
        body["prompt"] = request.text
    if request.HasField("add_special_tokens"):
        body["add_special_tokens"] = request.add_special_tokens
    return body


def messages_body(messages: Sequence[serving_pb2.Message]) -> list[dict[str, str]]:
    """The `messages` of a chat body."""
    return [{"role": message.role, "content": message.content} for message in messages]


def piece_response(
    head: ResponseHead, request_id: str, order: SequenceRequest, piece: OutputPiece, tokenizer: Tokenizer
) -> serving_pb2.GenerateResponse:
    """One response of a stream, without usage."""
    num_top, num_prompt_top = order.output.logprobs or 0, order.output.prompt_logprobs or 0
    response = serving_pb2.GenerateResponse(
        request_id=request_id,
        model=head.model,
        index=order.index,
        text=order.echo_text + piece.text if piece.is_first else piece.text,
        token_ids=piece.token_ids,
        logprobs=[_token_logprob(entry, num_top, tokenizer) for entry in piece.logprobs],
        finish_reason=_FINISH_REASONS.get(piece.finish_reason or "", serving_pb2.FINISH_REASON_UNSPECIFIED),
    )
    if order.output.prompt_logprobs is not None:
        response.prompt_logprobs.extend(
            _token_logprob(entry, num_prompt_top, tokenizer) for entry in piece.prompt_logprobs or ()
        )
    if isinstance(piece.stop_reason, str):
        response.stop_string = piece.stop_reason
    elif piece.stop_reason is not None:
        response.stop_token_id = piece.stop_reason
    return response


def usage_message(usage: Usage) -> serving_pb2.Usage:
    """The usage of a whole answer."""
    return serving_pb2.Usage(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_completion_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_completion_tokens,
        cached_tokens=usage.num_cached_tokens,
    )


def _common_body(request: serving_pb2.GenerateRequest | serving_pb2.ChatRequest) -> dict[str, Any]:
    sampling = request.sampling
    body: dict[str, Any] = {
        name: getattr(sampling, name) for name in _SAMPLING_FIELDS if sampling.HasField(name)
    }
    body["model"] = request.model or None
    body["return_token_ids"] = True
    body["stop"] = list(sampling.stop)
    body["stop_token_ids"] = list(sampling.stop_token_ids)
    body["logit_bias"] = {str(token_id): bias for token_id, bias in sampling.logit_bias.items()}
    if request.HasField("truncate_prompt_tokens"):
        body["truncate_prompt_tokens"] = request.truncate_prompt_tokens
    if request.request_id:
        body["request_id"] = request.request_id
    body["priority"] = request.priority
    if request.HasField("cache_salt"):
        body["cache_salt"] = request.cache_salt
    if request.HasField("timeout_seconds"):
        body["timeout"] = request.timeout_seconds
    return body


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
