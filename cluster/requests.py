"""The truth of a client's request: its prompts, its seeds and the tokens it has so far.

When the connection to the dense actor is lost before a sequence is finished, the sequence is submitted again with the
tokens that it has; since sampling depends on seed and position alone, it goes on as if nothing had happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import msgspec

from actors.messages import SequenceDelta, Submit
from cluster.channel import Channels, DenseChannel, Sink
from cluster.errors import DeadlineExceeded, RequestFailed, ServerUnavailable
from cluster.openai.request import SequenceRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadlines:
    """How long one request may take."""

    total_seconds: float
    """From its arrival to its last token."""
    resume_seconds: float
    """How long it waits for a dense actor after a loss."""


class _Run:
    """One sequence and where it is being computed."""

    def __init__(self, order: SequenceRequest) -> None:
        self.order = order
        self.output_ids: list[int] = []
        self.has_prompt_logprobs = False
        self.is_finished = False
        self.attempt = 0
        self.sequence_id = ""
        self.channel: DenseChannel | None = None


_News = tuple[_Run | None, int, SequenceDelta | None]


class Request:
    """One client request of one or more sequences. Iterate over `deltas` once, and close it at the end."""

    def __init__(
        self, request_id: str, orders: Sequence[SequenceRequest], channels: Channels, deadlines: Deadlines
    ) -> None:
        self._request_id, self._channels, self._deadlines = request_id, channels, deadlines
        self._runs = {order.index: _Run(order) for order in orders}
        self._news: asyncio.Queue[_News] = asyncio.Queue()
        self.num_resumed = 0
        """How many times a sequence was submitted again."""

    async def deltas(self) -> AsyncGenerator[tuple[int, SequenceDelta], None]:
        """(index of the sequence, what is new), in the order of arrival, until all sequences have finished.

        Raises DeadlineExceeded, ServerUnavailable when no dense actor came back in time, RequestFailed when the dense
        actor cannot compute a sequence. However it ends, no sequence stays behind at a dense actor.
        """
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(self._deadlines.total_seconds, self._news.put_nowait, (None, 0, None))
        try:
            await self._submit(list(self._runs.values()), is_first=True)
            while not all(run.is_finished for run in self._runs.values()):
                run, attempt, delta = await self._news.get()
                if run is None:
                    raise DeadlineExceeded(
                        f"the request took longer than {self._deadlines.total_seconds:g} seconds"
                    )
                if run.is_finished or attempt != run.attempt:
                    continue
                if delta is None:
                    await self._submit([run, *self._other_losses()])
                    continue
                yield run.order.index, self._take(run, delta)
        finally:
            alarm.cancel()
            for index in self._runs:
                self.finish(index)

    def finish(self, index: int) -> None:
        """This sequence is not wanted any longer, for example because its text reached a stop string."""
        run = self._runs[index]
        if not run.is_finished:
            run.is_finished = True
            if run.channel is not None:
                run.channel.cancel(run.sequence_id)

    def _take(self, run: _Run, delta: SequenceDelta) -> SequenceDelta:
        if delta.finish_reason == "error":
            run.is_finished = True
            raise RequestFailed(delta.error or "the dense actor failed")
        run.is_finished = delta.finish_reason is not None
        run.output_ids.extend(delta.token_ids)
        if delta.prompt_logprobs is not None:
            if run.has_prompt_logprobs:
                return msgspec.structs.replace(delta, prompt_logprobs=None)
            run.has_prompt_logprobs = True
        return delta

    def _other_losses(self) -> list[_Run]:
        """Sequences whose loss is already known as well, so that all are submitted again together."""
        lost, kept = [], []
        while not self._news.empty():
            run, attempt, delta = self._news.get_nowait()
            if run is not None and delta is None and attempt == run.attempt and not run.is_finished:
                lost.append(run)
            else:
                kept.append((run, attempt, delta))
        for item in kept:
            self._news.put_nowait(item)
        return lost

    async def _submit(self, runs: list[_Run], is_first: bool = False) -> None:
        wait_seconds = self._deadlines.resume_seconds if not is_first or self._channels.was_ready else 0.0
        wait_seconds = min(wait_seconds, self._deadlines.total_seconds)
        try:
            channel = await self._channels.acquire(wait_seconds)
        except asyncio.TimeoutError:
            raise ServerUnavailable("no dense actor is ready") from None
        for run in runs:
            run.attempt += 1
            run.channel = channel
            run.sequence_id = f"{self._request_id}-{run.order.index}-{run.attempt}"
            order = Submit(
                sequence_id=run.sequence_id,
                prompt_ids=list(run.order.prompt_ids),
                params=run.order.params,
                output_ids=list(run.output_ids),
            )
            channel.submit(order, self._sink(run))
        self.num_resumed += 0 if is_first else len(runs)

    def _sink(self, run: _Run) -> Sink:
        attempt = run.attempt
        return lambda delta: self._news.put_nowait((run, attempt, delta))
