"""The gRPC methods: `phimoe.v1.Serving` and `grpc.health.v1.Health`, over the same service as HTTP.

Health is public; everything else wants a key in the `authorization` metadata, as `cluster.ingress.auth` says.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from grpc_health.v1 import health_pb2

from cluster.errors import ModelNotFound
from cluster.grpc_retry import told_when_to_retry
from cluster.ingress.auth import Access
from cluster.ingress.grpc.calls import CallContext, Calls
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

SERVICE_NAMES = ("", "phimoe.v1.Serving", "phimoe.v1.Admin")
"""What a health check may ask about."""
_WATCH_POLL_SECONDS = 0.5


class GrpcMethods:
    """One coroutine or generator per method. A ClientError becomes its status; nothing else gets out."""

    def __init__(self, service: Service, calls: Calls) -> None:
        self._service, self._calls = service, calls

    async def generate(
        self, request: serving_pb2.GenerateRequest, context: CallContext
    ) -> AsyncGenerator[serving_pb2.GenerateResponse, None]:
        """Serving.Generate."""
        with self._calls.admitted(request, context):
            parsed = parse_completion(generate_body(request), self._service.limits)
            with told_when_to_retry(context):
                async with contextlib.aclosing(self._stream(parsed)) as responses:
                    async for response in responses:
                        yield response

    async def chat(
        self, request: serving_pb2.ChatRequest, context: CallContext
    ) -> AsyncGenerator[serving_pb2.GenerateResponse, None]:
        """Serving.Chat."""
        with self._calls.admitted(request, context):
            parsed = parse_chat(chat_body(request), self._service.limits)
            with told_when_to_retry(context):
                async with contextlib.aclosing(self._stream(parsed)) as responses:
                    async for response in responses:
                        yield response

    async def tokenize(
        self, request: serving_pb2.TokenizeRequest, context: CallContext
    ) -> serving_pb2.TokenizeResponse:
        """Serving.Tokenize."""
        with self._calls.admitted(request, context):
            parsed = parse_tokenize(tokenize_body(request), self._service.limits)
            check_model(parsed.model, [self._service.model_id])
            model = self._service.model
            token_ids = await asyncio.to_thread(tokenized, parsed, model)
            return serving_pb2.TokenizeResponse(token_ids=token_ids, max_model_len=model.limits.max_model_len)

    async def detokenize(
        self, request: serving_pb2.DetokenizeRequest, context: CallContext
    ) -> serving_pb2.DetokenizeResponse:
        """Serving.Detokenize."""
        with self._calls.admitted(request, context):
            body = {"model": request.model or None, "tokens": list(request.token_ids)}
            parsed = parse_detokenize(body, self._service.limits)
            check_model(parsed.model, [self._service.model_id])
            return serving_pb2.DetokenizeResponse(text=detokenized(parsed, self._service.model))

    async def model_info(
        self, request: serving_pb2.ModelInfoRequest, context: CallContext
    ) -> serving_pb2.ModelInfoResponse:
        """Serving.ModelInfo."""
        with self._calls.admitted(request, context):
            model = self._service.model
            return serving_pb2.ModelInfoResponse(
                model=self._service.model_id,
                max_model_len=model.limits.max_model_len,
                vocab_size=model.limits.vocab_size,
                eos_token_ids=model.limits.eos_token_ids,
                has_chat_template=model.template is not None,
                is_ready=self._service.is_ready,
            )

    async def check(
        self, request: health_pb2.HealthCheckRequest, context: CallContext
    ) -> health_pb2.HealthCheckResponse:
        """Health.Check: SERVING if a request would be answered now. NOT_FOUND for a service that is not here."""
        with self._calls.admitted(request, context, Access.PUBLIC):
            if request.service not in SERVICE_NAMES:
                raise ModelNotFound(request.service)
            return health_pb2.HealthCheckResponse(status=self._health(request.service))

    async def list(
        self, request: health_pb2.HealthListRequest, context: CallContext
    ) -> health_pb2.HealthListResponse:
        """Health.List: the same of every service."""
        with self._calls.admitted(request, context, Access.PUBLIC):
            statuses = {
                name: health_pb2.HealthCheckResponse(status=self._health(name)) for name in SERVICE_NAMES
            }
            return health_pb2.HealthListResponse(statuses=statuses)

    async def watch(
        self, request: health_pb2.HealthCheckRequest, context: CallContext
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Health.Watch: the status now and after every change."""
        last = None
        while True:
            status = self._health(request.service)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            await asyncio.sleep(_WATCH_POLL_SECONDS)

    def _health(self, service_name: str) -> Any:
        if service_name not in SERVICE_NAMES:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._service.is_ready:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    async def _stream(self, parsed: ParsedRequest) -> AsyncGenerator[serving_pb2.GenerateResponse, None]:
        service = self._service
        answer = await service.open(parsed)
        tokenizer = service.model.tokenizer
        request_id = parsed.request_id or answer.head.response_id.partition("-")[2]
        count = UsageCount(answer.sequences)
        num_open = len(answer.sequences)
        async with contextlib.aclosing(service.pieces(answer)) as pieces:
            async for order, piece in pieces:
                response = piece_response(answer.head, request_id, order, piece, tokenizer)
                count.add(order, piece)
                num_open -= piece.finish_reason is not None
                if num_open == 0:
                    response.usage.CopyFrom(usage_message(count.total))
                yield response
