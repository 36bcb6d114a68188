"""The methods of `phimoe.v1.Serving`, which use the same `Service` as HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from cluster.ingress.grpc.calls import CallContext, told_when_to_retry
from cluster.ingress.grpc.convert import (
    chat_body,
    generate_body,
    piece_response,
    tokenize_body,
    usage_message,
)
from cluster.ingress.service import Service
from cluster.openai.models import check_model
from cluster.openai.parsing.parse import parse_chat, parse_completion
from cluster.openai.replies.responses import UsageCount
from cluster.openai.request import ParsedRequest
from cluster.openai.tokenize import detokenized, parse_detokenize, parse_tokenize, tokenized
from protos import serving_pb2


class ServingMethods:
    """One coroutine or async generator for each method of the proto, under its name.

    Each may raise ClientError.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def Generate(
        self, request: serving_pb2.GenerateRequest, context: CallContext
    ) -> AsyncGenerator[serving_pb2.GenerateResponse, None]:
        """Continue one or more prompts."""
        parsed = parse_completion(generate_body(request), self._service.limits)
        with told_when_to_retry(context):
            async with contextlib.aclosing(self._stream(parsed)) as responses:
                async for response in responses:
                    yield response

    async def Chat(
        self, request: serving_pb2.ChatRequest, context: CallContext
    ) -> AsyncGenerator[serving_pb2.GenerateResponse, None]:
        """Answer a conversation."""
        parsed = parse_chat(chat_body(request), self._service.limits)
        with told_when_to_retry(context):
            async with contextlib.aclosing(self._stream(parsed)) as responses:
                async for response in responses:
                    yield response

    async def Tokenize(
        self, request: serving_pb2.TokenizeRequest, context: CallContext
    ) -> serving_pb2.TokenizeResponse:
        """Turn a text or a conversation into token ids."""
        parsed = parse_tokenize(tokenize_body(request), self._service.limits)
        check_model(parsed.model, [self._service.model_id])
        model = self._service.model
        token_ids = await asyncio.to_thread(tokenized, parsed, model)
        return serving_pb2.TokenizeResponse(token_ids=token_ids, max_model_len=model.limits.max_model_len)

    async def Detokenize(
        self, request: serving_pb2.DetokenizeRequest, context: CallContext
    ) -> serving_pb2.DetokenizeResponse:
        """Turn token ids into text."""
        body = {"model": request.model or None, "tokens": list(request.token_ids)}
        parsed = parse_detokenize(body, self._service.limits)
        check_model(parsed.model, [self._service.model_id])
        return serving_pb2.DetokenizeResponse(text=detokenized(parsed, self._service.model))

    async def ModelInfo(
        self, request: serving_pb2.ModelInfoRequest, context: CallContext
    ) -> serving_pb2.ModelInfoResponse:
        """Describe the served model."""
        model = self._service.model
        return serving_pb2.ModelInfoResponse(
            model=self._service.model_id,
            max_model_len=model.limits.max_model_len,
            vocab_size=model.limits.vocab_size,
            eos_token_ids=model.limits.eos_token_ids,
            has_chat_template=model.template is not None,
            is_ready=self._service.is_ready,
        )

    async def _stream(self, parsed: ParsedRequest) -> AsyncGenerator[serving_pb2.GenerateResponse, None]:
        service = self._service
        generation = await service.open(parsed)
        head, tokenizer = generation.head, service.model.tokenizer
        request_id = parsed.request_id or head.response_id.partition("-")[2]
        count = UsageCount(generation.sequences)
        num_open = len(generation.sequences)
        async with contextlib.aclosing(service.pieces(generation)) as pieces:
            async for sequence_request, piece in pieces:
                response = piece_response(head, request_id, sequence_request, piece, tokenizer)
                count.add(sequence_request, piece)
                num_open -= piece.finish_reason is not None
                if num_open == 0:
                    response.usage.CopyFrom(usage_message(count.total))
                yield response
