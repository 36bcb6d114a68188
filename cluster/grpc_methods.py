"""The gRPC methods: `phimoe.v1.Serving` and `grpc.health.v1.Health`, over the same service as HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2

from cluster.errors import ClientError, ModelNotFound, client_error, outcome
from cluster.grpc_convert import chat_body, generate_body, piece_response, tokenize_body
from cluster.grpc_retry import told_when_to_retry
from cluster.openai.models import check_model
from cluster.openai.parse import parse_chat, parse_completion
from cluster.openai.request import ParsedRequest
from cluster.openai.responses import num_prompt_tokens
from cluster.openai.tokenize import detokenized, parse_detokenize, parse_tokenize, tokenized
from cluster.service import Service
from protos import serving_pb2

logger = logging.getLogger(__name__)

SERVICE_NAMES = ("", "phimoe.v1.Serving")
"""What a health check may ask about."""
_WATCH_POLL_SECONDS = 0.5


class StatusContext(Protocol):
    """The part of a gRPC context that the methods use."""

    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None: ...


class GrpcMethods:
    """One coroutine or generator per method. A ClientError becomes its status; nothing else gets out."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def generate(
        self, request: serving_pb2.GenerateRequest, context: StatusContext
    ) -> AsyncGenerator[serving_pb2.GenerateResponse, None]:
        """Serving.Generate."""
        with _status(context):
            parsed = parse_completion(generate_body(request), self._service.limits)
            with told_when_to_retry(context):
                async with contextlib.aclosing(self._stream(parsed)) as responses:
                    async for response in responses:
                        yield response

    async def chat(
        self, request: serving_pb2.ChatRequest, context: StatusContext
    ) -> AsyncGenerator[serving_pb2.GenerateResponse, None]:
        """Serving.Chat."""
        with _status(context):
            parsed = parse_chat(chat_body(request), self._service.limits)
            with told_when_to_retry(context):
                async with contextlib.aclosing(self._stream(parsed)) as responses:
                    async for response in responses:
                        yield response

    async def tokenize(
        self, request: serving_pb2.TokenizeRequest, context: StatusContext
    ) -> serving_pb2.TokenizeResponse:
        """Serving.Tokenize."""
        with _status(context):
            parsed = parse_tokenize(tokenize_body(request), self._service.limits)
            check_model(parsed.model, [self._service.model_id])
            model = self._service.model
            token_ids = await asyncio.to_thread(tokenized, parsed, model)
            return serving_pb2.TokenizeResponse(token_ids=token_ids, max_model_len=model.limits.max_model_len)

    async def detokenize(
        self, request: serving_pb2.DetokenizeRequest, context: StatusContext
    ) -> serving_pb2.DetokenizeResponse:
        """Serving.Detokenize."""
        with _status(context):
            body = {"model": request.model or None, "tokens": list(request.token_ids)}
            parsed = parse_detokenize(body, self._service.limits)
            check_model(parsed.model, [self._service.model_id])
            return serving_pb2.DetokenizeResponse(text=detokenized(parsed, self._service.model))

    async def model_info(
        self, request: serving_pb2.ModelInfoRequest, context: StatusContext
    ) -> serving_pb2.ModelInfoResponse:
        """Serving.ModelInfo."""
        with _status(context):
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
        self, request: health_pb2.HealthCheckRequest, context: StatusContext
    ) -> health_pb2.HealthCheckResponse:
        """Health.Check: SERVING if a request would be answered now. NOT_FOUND for a service that is not here."""
        with _status(context):
            if request.service not in SERVICE_NAMES:
                raise ModelNotFound(request.service)
            return health_pb2.HealthCheckResponse(status=self._health(request.service))

    async def watch(
        self, request: health_pb2.HealthCheckRequest, context: StatusContext
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
        num_tokens = {order.index: 0 for order in answer.sequences}
        num_open = len(answer.sequences)
        async with contextlib.aclosing(service.pieces(answer)) as pieces:
            async for order, piece in pieces:
                response = piece_response(answer.head, request_id, order, piece, tokenizer)
                num_tokens[order.index] = piece.num_tokens
                num_open -= piece.finish_reason is not None
                if num_open == 0:
                    prompt, completion = num_prompt_tokens(answer.sequences), sum(num_tokens.values())
                    response.usage.CopyFrom(
                        serving_pb2.Usage(
                            prompt_tokens=prompt,
                            completion_tokens=completion,
                            total_tokens=prompt + completion,
                        )
                    )
                yield response


@contextlib.contextmanager
def _status(context: StatusContext) -> Iterator[None]:
    """Give the call the status of the error that leaves the block."""
    try:
        yield
    except Exception as error:
        told: ClientError = client_error(error)
        if outcome(told).status == 500:
            logger.error("a request failed", exc_info=error)
        context.set_code(getattr(grpc.StatusCode, outcome(told).grpc))
        context.set_details(str(told))
        raise told from None
