"""What one ingress replica does with a request, over HTTP and gRPC alike.

    ParsedRequest -> open(): admission, tokens, deadlines -> Generation -> pieces(): dense actors, text

`cluster.ingress.supervisor_follower` keeps a channel to each dense actor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from actors.checkpoint.download import resolve
from actors.checkpoint.dummy.presets import PRESETS
from actors.checkpoint.dummy.small_files import write_small_files
from actors.errors import ActorError
from actors.protocol.messages import Load
from actors.protocol.settings import ModelSource
from cluster.config.cluster_config import ClusterConfig
from cluster.config.model_source import model_source
from cluster.config.request_limits import limits_of
from cluster.errors import ClientError, ServerUnavailable, TooManyRequests
from cluster.ingress.admission import SEQUENCE_TOKENS, Admission, Bounds
from cluster.ingress.supervisor_follower import SupervisorFollower, SupervisorLink
from cluster.messages import ClusterView
from cluster.openai.models import check_model
from cluster.openai.prompts.model_context import ModelContext, load_model_context
from cluster.openai.prompts.prepare import prepare
from cluster.openai.replies.assembler import ChoiceAssembler, OutputPiece
from cluster.openai.replies.responses import ResponseHead, response_id
from cluster.openai.request import ParsedRequest, SequenceRequest
from cluster.requests.channel_pool import Channels
from cluster.requests.request import Deadlines, Request

logger = logging.getLogger(__name__)

_VIEW_SECONDS = 10.0
DRAIN_RETRY_SECONDS = 5
"""After this time, a client that a draining service refused should try the same address again.

Another service may answer there by then.
"""
_LONG_PROMPT_CHARS = 20_000
"""Prompts of at least this many characters are tokenized on another thread, so that streams go on."""


class Generation:
    """One accepted request.

    Iterate over `pieces` once; closing the iterator frees everything the request holds.
    """

    def __init__(
        self, parsed: ParsedRequest, head: ResponseHead, sequences: tuple[SequenceRequest, ...], run: Request
    ) -> None:
        self.parsed, self.head, self.sequences = parsed, head, sequences
        self._run = run

    def abort(self, error: ClientError) -> None:
        """End the request with this error. The pieces that were given out before stay valid."""
        self._run.abort(error)

    async def pieces(self, model: ModelContext) -> AsyncGenerator[tuple[SequenceRequest, OutputPiece], None]:
        """Yield the new output of each choice as it arrives. Raises ClientError."""
        assemblers = {
            sequence_request.index: ChoiceAssembler(model.tokenizer, sequence_request)
            for sequence_request in self.sequences
        }
        sequence_requests = {sequence_request.index: sequence_request for sequence_request in self.sequences}
        async with contextlib.aclosing(self._run.deltas()) as deltas:
            async for index, delta in deltas:
                piece = assemblers[index].push(delta)
                if piece is None:
                    continue
                if piece.needs_cancel:
                    self._run.finish(index)
                yield sequence_requests[index], piece


class Service:
    """The state of one ingress replica. It belongs to one event loop."""

    def __init__(
        self, config: ClusterConfig, find_supervisor: Callable[[], Awaitable[SupervisorLink]]
    ) -> None:
        self.config = config
        self.limits = limits_of(config)
        self.started_at = int(time.time())
        self.channels = Channels(config.dense_silence_seconds)
        self._follower = SupervisorFollower(find_supervisor, self.channels, self.drain)
        self._context: ModelContext | None = None
        self._context_error: str | None = None
        self._deadlines = Deadlines(
            total_seconds=config.request_deadline_seconds, resume_seconds=config.resume_deadline_seconds
        )
        self._tasks: list[asyncio.Task[None]] = []
        bounds = Bounds(max_requests=config.max_waiting_requests, max_tokens=config.max_waiting_tokens)
        self._admission = Admission(bounds)
        self._generations: set[Generation] = set()
        """The generations under way, which the end of a drain aborts."""
        self._drain_end: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start connecting to the dense actors and loading the tokenizer, in the running event loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follower.run()), loop.create_task(self._load_context())]

    async def close(self) -> None:
        """Close the channels to the dense actors.

        Requests that still run fail because no dense actor is ready.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.channels.close()

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered now."""
        return self._context is not None and self.channels.is_ready and not self.is_draining

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused until this replica ends."""
        return self._drain_end is not None

    @property
    def num_requests(self) -> int:
        """Requests under way."""
        return self._admission.num_requests

    @property
    def model_id(self) -> str:
        """The name of the served model."""
        return self.config.model_id

    @property
    def model(self) -> ModelContext:
        """Tokenizer, template and limits; the context is the shortest that any dense actor reports.

        Raises ServerUnavailable until the tokenizer is loaded and a dense actor has reported its context
        length.
        """
        lengths = [channel.max_model_len for channel in self.channels if channel.max_model_len]
        if self._context is None:
            raise ServerUnavailable(self._context_error or "the service is starting", 5)
        if lengths and self._context.limits.max_model_len != min(lengths):
            limits = replace(self._context.limits, max_model_len=min(lengths))
            self._context = replace(self._context, limits=limits)
        if not self._context.limits.max_model_len:
            raise ServerUnavailable("the service is starting", 5)
        return self._context

    @property
    def loads(self) -> list[Load]:
        """The latest reported load of each dense actor."""
        return [channel.load for channel in self.channels]

    @property
    def supervisor(self) -> SupervisorLink:
        """The supervisor, which carries out admin operations.

        Raises ServerUnavailable while none is known.
        """
        return self._follower.supervisor

    async def view(self) -> ClusterView:
        """Return the view of all actors. Raises ServerUnavailable if the supervisor cannot be reached."""
        supervisor = self.supervisor
        try:
            return await supervisor.view(_VIEW_SECONDS)
        except Exception as error:
            raise ServerUnavailable("the supervisor cannot be reached") from error

    async def open(self, parsed: ParsedRequest, deadline_seconds: float | None = None) -> Generation:
        """Accept a request.

        Raises ClientError if the request is invalid, if too many are under way, or if none can be answered
        now.

        `deadline_seconds` is the client's own deadline, if it sent one in a header.
        """
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        self._check_admission()
        model = self.model
        name = check_model(parsed.model, [self.model_id])
        sequences = await self._prepare(parsed, model)
        self._check_admission(_num_tokens(sequences))
        request_id = parsed.request_id or uuid.uuid4().hex
        wishes = (deadline_seconds, parsed.timeout_seconds, self._deadlines.total_seconds)
        total_seconds = min(seconds for seconds in wishes if seconds is not None)
        deadlines = replace(self._deadlines, total_seconds=total_seconds, spent_seconds=loop.time() - arrived)
        # A client may use an id twice, but each request needs a unique id at the dense actors.
        run = Request(uuid.uuid4().hex, sequences, self.channels, deadlines)
        head = ResponseHead(
            response_id=response_id(parsed.kind, request_id), created=int(time.time()), model=name
        )
        return Generation(parsed, head, sequences, run)

    async def pieces(
        self, generation: Generation
    ) -> AsyncGenerator[tuple[SequenceRequest, OutputPiece], None]:
        """Yield the pieces of a generation. It counts as a request under way while the iteration lasts."""
        num_tokens = _num_tokens(generation.sequences)
        self._admission.begin(num_tokens)
        self._generations.add(generation)
        try:
            async with contextlib.aclosing(generation.pieces(self.model)) as pieces:
                async for item in pieces:
                    yield item
        finally:
            self._generations.discard(generation)
            self._admission.end(num_tokens, asyncio.get_running_loop().time())

    def drain(self, grace_seconds: float) -> None:
        """Refuse new requests. Requests that still run after the grace period end with an error.

        A second call has an effect only if its grace period ends earlier. A drain cannot be undone, since the
        replica ends after it.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_seconds
        if self._drain_end is not None:
            if self._drain_end.when() <= end:
                return
            self._drain_end.cancel()
        logger.info("draining for %g s, %d requests are under way", grace_seconds, self.num_requests)
        self._drain_end = loop.call_at(end, self._abort_all)

    def _abort_all(self) -> None:
        for generation in tuple(self._generations):
            generation.abort(ServerUnavailable("the service is shutting down", DRAIN_RETRY_SECONDS))

    def _check_admission(self, num_tokens: int = 0) -> None:
        """Raise ServerUnavailable while draining, TooManyRequests if `num_tokens` more would be too many."""
        if self.is_draining:
            raise ServerUnavailable("the service is draining", DRAIN_RETRY_SECONDS)
        if refusal := self._admission.refusal(num_tokens):
            seconds = self._admission.retry_after_seconds(asyncio.get_running_loop().time())
            raise TooManyRequests(f"{refusal}; try again in {seconds} s", seconds)

    async def _prepare(self, parsed: ParsedRequest, model: ModelContext) -> tuple[SequenceRequest, ...]:
        messages = parsed.chat.messages if parsed.chat is not None else ()
        num_chars = sum(len(str(message.get("content", ""))) for message in messages)
        num_chars += sum(len(prompt) for prompt in parsed.prompts)
        if num_chars < _LONG_PROMPT_CHARS:
            return prepare(parsed, model, self.limits, _draw_seed)
        return await asyncio.to_thread(prepare, parsed, model, self.limits, _draw_seed)

    async def _load_context(self) -> None:
        """Load tokenizer, chat template and defaults.

        They are downloaded first if the model is on the hub.
        """
        try:
            self._context = await asyncio.to_thread(_read_context, model_source(self.config))
        except ActorError as error:
            logger.exception("the model's tokenizer cannot be loaded")
            self._context_error = str(error)


def _read_context(source: ModelSource) -> ModelContext:
    """Read the files of a checkpoint that an ingress replica needs.

    The context length stays unknown, written as 0.
    """
    if source.load_format == "dummy" and source.model in PRESETS:
        with tempfile.TemporaryDirectory() as folder:
            write_small_files(source.model or "", Path(folder))
            return load_model_context(folder, 0)
    return load_model_context(resolve(source), 0)


def _num_tokens(sequences: tuple[SequenceRequest, ...]) -> int:
    """Return the tokens that a request counts for at admission."""
    return sum(len(sequence_request.prompt_ids) + SEQUENCE_TOKENS for sequence_request in sequences)


def _draw_seed() -> int:
    return secrets.randbits(64)
