"""The handlers of the HTTP routes: OpenAI's, those of the service itself, and those for operators."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from actors.protocol.messages import Load
from cluster.config.request_limits import Limits
from cluster.errors import ModelNotFound, ServerUnavailable
from cluster.ingress.admin import Admin
from cluster.ingress.admin_bodies import parse_operation
from cluster.ingress.http.route import EventStream, Handler, HttpRequest, HttpResponse
from cluster.ingress.service import DRAIN_RETRY_SECONDS, Generation, Service
from cluster.openai.encoding import SSE_DONE, decode_body, sse_frame
from cluster.openai.models import check_model, model_card, models_response
from cluster.openai.parsing.parse import parse_chat, parse_completion, parse_timeout_header
from cluster.openai.replies.assembler import OutputPiece, merged
from cluster.openai.replies.responses import StreamChunks, full_response
from cluster.openai.request import ParsedRequest
from cluster.openai.tokenize import (
    detokenize_response,
    detokenized,
    parse_detokenize,
    parse_tokenize,
    tokenize_response,
    tokenized,
)
from cluster.supervisor.operations.messages import Operation


class Handlers:
    """The handlers for clients. Every handler may raise ClientError."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, request: HttpRequest) -> HttpResponse:
        service = self._service
        limits = service.model.limits
        return HttpResponse(value=models_response([service.model_id], service.started_at, limits))

    async def model(self, request: HttpRequest) -> HttpResponse:
        service = self._service
        if request.rest != service.model_id:
            raise ModelNotFound(request.rest)
        return HttpResponse(value=model_card(request.rest, service.started_at, service.model.limits))

    async def completions(self, request: HttpRequest) -> HttpResponse | EventStream:
        return await self._generate(request, parse_completion)

    async def chat_completions(self, request: HttpRequest) -> HttpResponse | EventStream:
        return await self._generate(request, parse_chat)

    async def tokenize(self, request: HttpRequest) -> HttpResponse:
        parsed = parse_tokenize(decode_body(request.body), self._service.limits)
        check_model(parsed.model, [self._service.model_id])
        model = self._service.model
        token_ids = await asyncio.to_thread(tokenized, parsed, model)
        return HttpResponse(value=tokenize_response(parsed, token_ids, model))

    async def detokenize(self, request: HttpRequest) -> HttpResponse:
        parsed = parse_detokenize(decode_body(request.body), self._service.limits)
        check_model(parsed.model, [self._service.model_id])
        text = await asyncio.to_thread(detokenized, parsed, self._service.model)
        return HttpResponse(value=detokenize_response(text))

    async def health(self, request: HttpRequest) -> HttpResponse:
        if self._service.is_draining:
            raise ServerUnavailable("the service is draining", DRAIN_RETRY_SECONDS)
        if not self._service.is_ready:
            raise ServerUnavailable("no request would be answered now")
        return HttpResponse(value={"status": "ready"})

    async def version(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(value={"version": package_version()})

    async def cluster(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(value=msgspec.to_builtins(await self._service.view()))

    async def load(self, request: HttpRequest) -> HttpResponse:
        """Report this ingress replica's requests, and the sequences and KV blocks of all dense actors."""
        loads = self._service.loads
        names = [item.name for item in msgspec.structs.fields(Load)]
        totals: dict[str, Any] = {name: sum(getattr(load, name) for load in loads) for name in names}
        return HttpResponse(value={"server_load": self._service.num_requests, **totals})

    async def _generate(
        self, request: HttpRequest, parse: Callable[[object, Limits], ParsedRequest]
    ) -> HttpResponse | EventStream:
        service = self._service
        parsed = parse(decode_body(request.body), service.limits)
        timeout_seconds = (
            None if request.timeout is None else parse_timeout_header(request.timeout, service.limits)
        )
        generation = await service.open(parsed, timeout_seconds)
        if generation.parsed.stream:
            return EventStream(frames=self._frames(generation))
        collected: dict[int, list[OutputPiece]] = {
            sequence_request.index: [] for sequence_request in generation.sequences
        }
        async with contextlib.aclosing(service.pieces(generation)) as open_pieces:
            async for sequence_request, piece in open_pieces:
                collected[sequence_request.index].append(piece)
        choices = [
            (sequence_request, merged(collected[sequence_request.index]))
            for sequence_request in generation.sequences
        ]
        tokenizer = service.model.tokenizer
        return HttpResponse(value=full_response(generation.parsed.kind, generation.head, choices, tokenizer))

    async def _frames(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        tokenizer = self._service.model.tokenizer
        chunks = StreamChunks(generation.parsed, generation.head, generation.sequences, tokenizer)
        opening = [sse_frame(body) for body in chunks.opening()]
        async with contextlib.aclosing(self._service.pieces(generation)) as pieces:
            async for sequence_request, piece in pieces:
                yield b"".join([*opening, sse_frame(chunks.chunk(sequence_request, piece))])
                opening.clear()
        yield b"".join([*(sse_frame(body) for body in chunks.closing()), SSE_DONE])


class AdminHandlers:
    """The handlers for operators.

    Every handler answers with the view of all actors, after the operation if any.
    """

    def __init__(self, admin: Admin) -> None:
        self._admin = admin

    async def status(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(value=msgspec.to_builtins(await self._admin.status()))

    def operate(self, operation: type[Operation]) -> Handler:
        """Return the handler that carries out an operation.

        An empty body counts as an object without fields.
        """

        async def handle(request: HttpRequest) -> HttpResponse:
            message = parse_operation(operation, decode_body(request.body) if request.body else {})
            return HttpResponse(value=msgspec.to_builtins(await self._admin.operate(message)))

        return handle


def package_version() -> str:
    """Return the installed version, or the version of this source tree if the package is not installed."""
    try:
        return importlib.metadata.version("phimoe-cluster")
    except importlib.metadata.PackageNotFoundError:
        return "0.2.0"
