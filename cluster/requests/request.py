"""One client request, held by its ingress replica: its prompts, its seeds and the tokens so far.

When the dense actor that computes a sequence is lost or about to leave, the sequence is submitted again
together with its tokens so far: at once to another dense actor that is ready, otherwise to the first that
becomes ready. Sampling depends on seed and position alone, so the sequence continues with the same tokens.
All events of a request pass through one queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import msgspec

from actors.protocol.messages import SequenceDelta, Submit
from cluster.errors import ClientError, DeadlineExceeded, RequestFailed, ServerUnavailable
from cluster.openai.request import SequenceRequest
from cluster.requests.channel_pool import Channels
from cluster.requests.dense_channel import DenseChannel, Sink


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadlines:
    """How long one request may take."""

    total_seconds: float
    """Time from the request's arrival to its last token."""
    resume_seconds: float
    """How long the request waits for a dense actor after a loss."""
    spent_seconds: float = 0.0
    """The part of the total time that had passed when the sequences were submitted."""


class _Run:
    """One sequence, its tokens so far, and the channel to the dense actor that computes it."""

    def __init__(self, sequence_request: SequenceRequest) -> None:
        self.sequence_request = sequence_request
        self.output_ids: list[int] = []
        self.has_prompt_logprobs = False
        self.is_finished = False
        self.attempt = 0
        self.sequence_id = ""
        self.channel: DenseChannel | None = None


@dataclass(frozen=True, slots=True)
class _Delta:
    """What one attempt to compute a sequence has produced.

    With None the attempt has ended without a result.
    """

    run: _Run
    attempt: int
    delta: SequenceDelta | None


@dataclass(frozen=True, slots=True)
class _Change:
    """A dense actor has become ready, or is no longer ready."""


@dataclass(frozen=True, slots=True)
class _ResumeTimedOut:
    """The time for sequences without a dense actor is over. It counts only if `wait` is the present wait."""

    wait: int


class Request:
    """One client request of one or more sequences.

    Iterate over `deltas` once, and close the iterator at the end.
    """

    def __init__(
        self,
        request_id: str,
        sequence_requests: Sequence[SequenceRequest],
        channels: Channels,
        deadlines: Deadlines,
    ) -> None:
        self._request_id, self._channels, self._deadlines = request_id, channels, deadlines
        self._runs = {
            sequence_request.index: _Run(sequence_request) for sequence_request in sequence_requests
        }
        self._events: asyncio.Queue[_Delta | _Change | _ResumeTimedOut | ClientError] = asyncio.Queue()
        self._unplaced: list[_Run] = []
        """Sequences that wait for a dense actor."""
        self._num_waits = 0
        self._resume_timer: asyncio.TimerHandle | None = None

    async def deltas(self) -> AsyncGenerator[tuple[int, SequenceDelta], None]:
        """Yield (index of the sequence, delta) in the order of arrival, until all sequences have finished.

        Raises DeadlineExceeded; ServerUnavailable if no dense actor is ready in time after a loss;
        RequestFailed if the dense actor cannot compute a sequence; and the error that `abort` was given. At
        the end, in each of these cases, all sequences are cancelled at their dense actors.
        """
        late = DeadlineExceeded(f"the request took longer than {self._deadlines.total_seconds:g} seconds")
        left_seconds = self._deadlines.total_seconds - self._deadlines.spent_seconds
        alarm = asyncio.get_running_loop().call_later(left_seconds, self.abort, late)
        self._channels.add_listener(self._note_change)
        try:
            if not (self._channels.is_ready or self._channels.was_ready):
                raise ServerUnavailable("no dense actor is ready")
            self._place(list(self._runs.values()))
            while not all(run.is_finished for run in self._runs.values()):
                event = await self._events.get()
                if not isinstance(event, _Delta):
                    self._react(event)
                elif not event.run.is_finished and event.attempt == event.run.attempt:
                    if event.delta is not None:
                        yield event.run.sequence_request.index, self._take(event.run, event.delta)
                    else:
                        self._place([event.run])
        finally:
            self._channels.remove_listener(self._note_change)
            alarm.cancel()
            self._end_wait()
            for index in self._runs:
                self.finish(index)

    def finish(self, index: int) -> None:
        """End a sequence, for example because its text has reached a stop string."""
        run = self._runs[index]
        if not run.is_finished:
            run.is_finished = True
            if run.channel is not None:
                run.channel.cancel(run.sequence_id)

    def abort(self, error: ClientError) -> None:
        """End the request with this error."""
        self._events.put_nowait(error)

    def _react(self, event: _Change | _ResumeTimedOut | ClientError) -> None:
        match event:
            case ClientError():
                raise event
            case _ResumeTimedOut():
                if self._unplaced and event.wait == self._num_waits:
                    raise ServerUnavailable("no dense actor is ready")
            case _Change():
                unplaced, self._unplaced = self._unplaced, []
                self._place([run for run in unplaced if not run.is_finished])

    def _take(self, run: _Run, delta: SequenceDelta) -> SequenceDelta:
        if delta.finish_reason == "error":
            run.is_finished = True
            if delta.is_worth_retrying:
                raise ServerUnavailable("an actor stayed lost for too long; the request may be sent again")
            raise RequestFailed(delta.error or "the dense actor failed")
        run.is_finished = delta.finish_reason is not None
        run.output_ids.extend(delta.token_ids)
        if delta.prompt_logprobs is not None:
            if run.has_prompt_logprobs:
                return msgspec.structs.replace(delta, prompt_logprobs=None)
            run.has_prompt_logprobs = True
        return delta

    def _place(self, runs: list[_Run]) -> None:
        """Submit each sequence where it starts earliest, or have it wait until a dense actor is ready."""
        for run in runs:
            channel = self._channels.choose(
                [*run.sequence_request.prompt_ids, *run.output_ids], run.sequence_request.cache_salt
            )
            if channel is None:
                self._unplaced.append(run)
            else:
                self._submit(run, channel)
        if not self._unplaced:
            self._end_wait()
        elif self._resume_timer is None:
            loop, seconds = asyncio.get_running_loop(), self._deadlines.resume_seconds
            event = _ResumeTimedOut(self._num_waits)
            self._resume_timer = loop.call_later(seconds, self._events.put_nowait, event)

    def _end_wait(self) -> None:
        if self._resume_timer is not None:
            self._resume_timer.cancel()
            self._resume_timer = None
            self._num_waits += 1

    def _submit(self, run: _Run, channel: DenseChannel) -> None:
        run.attempt += 1
        run.channel = channel
        run.sequence_id = f"{self._request_id}-{run.sequence_request.index}-{run.attempt}"
        submit = Submit(
            sequence_id=run.sequence_id,
            prompt_ids=list(run.sequence_request.prompt_ids),
            params=run.sequence_request.params,
            output_ids=list(run.output_ids),
            priority=run.sequence_request.priority,
            cache_salt=run.sequence_request.cache_salt,
        )
        channel.submit(submit, self._sink(run))

    def _sink(self, run: _Run) -> Sink:
        attempt = run.attempt
        return lambda delta: self._events.put_nowait(_Delta(run, attempt, delta))

    def _note_change(self) -> None:
        if self._unplaced:
            self._events.put_nowait(_Change())
