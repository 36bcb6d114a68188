"""What one ingress replica does, whichever door a request came through.

    parsed request -> open() -> Generation -> pieces(): admission, prompts, dense actors, text

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
from cluster.errors import ClientError, ServerUnavailable, TooManyRequests
from cluster.ingress.admission import SEQUENCE_TOKENS, Admission, Bounds
from cluster.ingress.supervisor_follower import SupervisorFollower, SupervisorLink
from cluster.messages import ClusterView
from cluster.openai.limits import limits_of
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
"""When a client that a draining service refused should come again: to the next one behind the same address."""
_LONG_PROMPT_CHARS = 20_000
"""Prompts longer than this are tokenized on another thread, so that streams go on meanwhile."""


class Generation:
    """One accepted request. Iterate over `pieces` once; closing the iterator frees everything that it holds."""

    def __init__(
        self, parsed: ParsedRequest, head: ResponseHead, sequences: tuple[SequenceRequest, ...], run: Request
    ) -> None:
        self.parsed, self.head, self.sequences = parsed, head, sequences
        self._run = run

    def abort(self, error: ClientError) -> None:
        """End with this error; what was told before stays valid."""
        self._run.abort(error)

    async def pieces(self, model: ModelContext) -> AsyncGenerator[tuple[SequenceRequest, OutputPiece], None]:
        """What is new of each choice, in the order of arrival. Raises ClientError."""
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
    """The state of one ingress replica. Lives in one event loop."""

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
        self._answers: set[Generation] = set()
        """Under way."""
        self._drain_end: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to connect and to load the tokenizer, in the running event loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follower.run()), loop.create_task(self._load_context())]

    async def close(self) -> None:
        """Leave the dense actors; requests that still run hear that none is ready."""
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
        """Tokenizer and limits. Raises ServerUnavailable before a dense actor has said how long its context is."""
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
        """How busy each dense actor is, as it said last."""
        return [channel.load for channel in self.channels]

    @property
    def supervisor(self) -> SupervisorLink:
        """Where admin operations go. Raises ServerUnavailable while there is none."""
        return self._follower.supervisor

    async def view(self) -> ClusterView:
        """All actors. Raises ServerUnavailable while the supervisor cannot be reached."""
        supervisor = self.supervisor
        try:
            return await supervisor.view(_VIEW_SECONDS)
        except Exception as error:
            raise ServerUnavailable("the supervisor cannot be reached") from error

    async def open(self, parsed: ParsedRequest, deadline_seconds: float | None = None) -> Generation:
        """Accept a request. Raises ClientError: wrong, too many, not ready.

        `deadline_seconds` is the client's own, where it has one.
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
        # A client's own id may be in use already; what the dense actor sees must not be.
        run = Request(uuid.uuid4().hex, sequences, self.channels, deadlines)
        head = ResponseHead(
            response_id=response_id(parsed.kind, request_id), created=int(time.time()), model=name
        )
        return Generation(parsed, head, sequences, run)

    async def pieces(self, answer: Generation) -> AsyncGenerator[tuple[SequenceRequest, OutputPiece], None]:
        """The pieces of an answer, counted as a request under way for as long as the iteration lasts."""
        num_tokens = _num_tokens(answer.sequences)
        self._admission.begin(num_tokens)
        self._answers.add(answer)
        try:
            async with contextlib.aclosing(answer.pieces(self.model)) as pieces:
                async for item in pieces:
                    yield item
        finally:
            self._answers.discard(answer)
            self._admission.end(num_tokens, asyncio.get_running_loop().time())

    def drain(self, grace_seconds: float) -> None:
        """Take no new requests; those that still run after the grace period end with an error.

        A second call counts where it ends sooner. There is no way back: the replica is about to end.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_seconds
        if self._drain_end is not None:
            if self._drain_end.when() <= end:
                return
            self._drain_end.cancel()
        logger.info("draining for %g s, %d requests are under way", grace_seconds, self.num_requests)
        self._drain_end = loop.call_at(end, self._end_answers)

    def _end_answers(self) -> None:
        for answer in tuple(self._answers):
            answer.abort(ServerUnavailable("the service is shutting down", DRAIN_RETRY_SECONDS))

    def _check_admission(self, num_tokens: int = 0) -> None:
        """Raises ServerUnavailable while draining, TooManyRequests where there is no room for so many more tokens."""
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
        """Tokenizer, chat template and defaults; downloads them where the model is the hub's."""
        try:
            self._context = await asyncio.to_thread(_read_context, model_source(self.config))
        except ActorError as error:
            logger.exception("the model's tokenizer cannot be loaded")
            self._context_error = str(error)


def _read_context(source: ModelSource) -> ModelContext:
    """The front door's part of a checkpoint, with the length of the context still open (0)."""
    if source.load_format == "dummy" and source.model in PRESETS:
        with tempfile.TemporaryDirectory() as folder:
            write_small_files(source.model or "", Path(folder))
            return load_model_context(folder, 0)
    return load_model_context(resolve(source), 0)


def _num_tokens(sequences: tuple[SequenceRequest, ...]) -> int:
    """What a request weighs at admission."""
    return sum(len(sequence_request.prompt_ids) + SEQUENCE_TOKENS for sequence_request in sequences)


def _draw_seed() -> int:
    return secrets.randbits(64)
