"""The dense actor's loop: take commands, plan, compute and sample (`model_runner.py`), tell
(`step_results.py`).

One thread owns the scheduler, the cache and the exchange. Other threads talk to it through `submit`,
`cancel`, `leave` and `use_exchange`, which only put commands into an inbox.

A step whose exchange fails changes nothing that counts: its sequences keep their blocks, and the step is
computed again over the next exchange. A step that raises for another reason is computed again in parts, until
it is known which sequences cannot be computed (`fault_isolation.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TypeAlias

from actors.dense.fault_isolation import compute_isolated
from actors.dense.kv_cache import KVCache
from actors.dense.model import DenseModel
from actors.dense.model_runner import ModelRunner
from actors.dense.scheduling.prefill_budget import PrefillBudget
from actors.dense.scheduling.scheduler import Chunk, Scheduler
from actors.dense.scheduling.sequence import Sequence
from actors.dense.speculation.speculator import Speculator
from actors.dense.step_results import EVERYBODY, Emit, StepResults
from actors.errors import ExchangeError, NoHolderError, NotReadyError
from actors.exchange.interface import Exchange
from actors.protocol.messages import Cancel, EngineCounters, Load, Submit

logger = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
"""Longest sleep of an idle engine before it maintains its exchange."""
_INTERRUPTED_COUNTS = 4
"""Weight of a resumed sequence when prefill is budgeted. Its client already sees a stalled stream, so it
counts as four waiting prompts. Sequences that another dense actor leaves behind, or that cross LongRoPE's
limit together, are therefore recomputed in few steps."""


@dataclass(frozen=True, slots=True)
class _Leave:
    """The command that a connection has ended."""


@dataclass(frozen=True, slots=True)
class _UseExchange:
    exchange: Exchange


_Command: TypeAlias = Submit | Cancel | _Leave | _UseExchange


class Engine:
    """The loop that runs sequences to their end. Call `start` once and `stop` once."""

    def __init__(
        self,
        model: DenseModel,
        cache: KVCache,
        scheduler: Scheduler,
        emit: Emit,
        prefill_budget: PrefillBudget,
        park_seconds: float,
        max_drafts: int = 0,
    ) -> None:
        """Make an engine that is not started yet.

        park_seconds: how long sequences wait between two steps while some expert has no holder. max_drafts:
        most drafts of one sequence in one step; 0 turns speculation off.
        """
        self._model_runner = ModelRunner(model, cache)
        self._results = StepResults(emit, model.config.eos_token_ids)
        self._scheduler = scheduler
        self._prefill_budget = prefill_budget
        self._park_seconds = park_seconds
        self._speculator = Speculator(max_drafts, scheduler.limits, scheduler.pool) if max_drafts else None
        self._parked_since: float | None = None
        """Time since which there are sequences that cannot be computed; None if there are none."""
        self._exchange: Exchange | None = None
        self._sequences: dict[tuple[int, str], Sequence] = {}
        self._num_arrivals = 0
        self._inbox: list[tuple[int, _Command]] = []
        self._wake = threading.Condition()
        self._has_news = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.num_steps = 0
        self.num_failed_sequences = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the loop after the current step and close the exchange. The step stops waiting for expert
        actors."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if (exchange := self._exchange) is not None:
            exchange.interrupt()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_ready(self) -> bool:
        """Whether a sequence that is submitted now would be computed."""
        exchange = self._exchange
        return exchange is not None and exchange.is_ready

    @property
    def load(self) -> Load:
        """A snapshot of the load. Any thread may read it. Sequences that wait in the inbox count as
        waiting."""
        scheduler = self._scheduler
        num_submitted = sum(isinstance(command, Submit) for _, command in tuple(self._inbox))
        return Load(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + num_submitted,
            free_blocks=scheduler.pool.num_free,
            total_blocks=scheduler.pool.num_blocks,
            prefix_queried_tokens=scheduler.num_queried_tokens,
            prefix_hit_tokens=scheduler.num_hit_tokens,
        )

    @property
    def counters(self) -> EngineCounters:
        """A snapshot of what the engine has done so far. Any thread may read it."""
        speculator = self._speculator
        return EngineCounters(
            steps=self.num_steps,
            failed_sequences=self.num_failed_sequences,
            generated_tokens=self._results.num_generated_tokens,
            preemptions=self._scheduler.num_preemptions,
            draft_tokens=speculator.num_proposed if speculator is not None else 0,
            accepted_draft_tokens=speculator.num_accepted if speculator is not None else 0,
        )

    def submit(self, connection: int, submit: Submit) -> None:
        self._put(connection, submit)

    def cancel(self, connection: int, cancel: Cancel) -> None:
        self._put(connection, cancel)

    def leave(self, connection: int) -> None:
        """Forget all sequences of a connection."""
        self._put(connection, _Leave())

    def use_exchange(self, exchange: Exchange) -> None:
        """Compute over this exchange from the next step on, and close the present one."""
        self._put(EVERYBODY, _UseExchange(exchange))

    def wake(self) -> None:
        """Wake an idle loop, since the exchange may have become ready or may be ready no longer."""
        with self._wake:
            self._has_news = True
            self._wake.notify()

    def _put(self, connection: int, command: _Command) -> None:
        with self._wake:
            self._inbox.append((connection, command))
            self._wake.notify()

    def step_once(self) -> None:
        """Run the loop once: take commands, plan, compute a step, tell the results. Only the loop's thread
        calls this, or a test that does not start the thread."""
        self._take_commands()
        chunks = self._plan() if self.is_ready else []
        if chunks:
            self._step(chunks)
        elif self._exchange is not None:
            self._maintain(self._exchange)
        self._end_parked()
        is_ready = self.is_ready
        if self._results.has_news(is_ready):
            self._results.tell(self.load, is_ready)

    def _plan(self) -> list[Chunk]:
        scheduler = self._scheduler
        num_decodes = sum(sequence.num_uncomputed == 1 for sequence in scheduler.running)
        num_places = min(scheduler.limits.max_num_sequences, len(scheduler.running) + len(scheduler.waiting))
        interrupted = (
            bool(s.output_ids) and s.num_uncomputed > 1 for s in [*scheduler.running, *scheduler.waiting]
        )
        num_prefills = num_places - num_decodes + (_INTERRUPTED_COUNTS - 1) * sum(interrupted)
        chunks = scheduler.plan(self._prefill_budget.max_prefill_tokens(num_decodes, num_prefills))
        # A step with prompt tokens gets no drafts. Nor does a step that only decodes so that its time can be
        # measured.
        is_all = len(chunks) == len(scheduler.running) and not scheduler.waiting
        if self._speculator is None or not chunks or not is_all:
            return chunks
        is_decoding = all(chunk.samples and chunk.num_tokens == 1 for chunk in chunks)
        return self._speculator.add_drafts(chunks) if is_decoding else chunks

    def _run(self) -> None:
        while not self._is_stopping:
            self._wait_for_work()
            self.step_once()
        if self._exchange is not None:
            self._exchange.close()

    def _wait_for_work(self) -> None:
        with self._wake:
            if not (self._is_stopping or self._inbox or self._has_news or self._has_work()):
                self._wake.wait(_TICK_SECONDS)
            self._has_news = False

    def _take_commands(self) -> None:
        with self._wake:
            commands, self._inbox = self._inbox, []
        for connection, command in commands:
            self._carry_out(connection, command)

    def _has_work(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting) and self.is_ready

    def _carry_out(self, connection: int, command: _Command) -> None:
        match command:
            case Submit():
                self._admit(connection, command)
            case Cancel():
                if sequence := self._sequences.get((connection, command.sequence_id)):
                    self._forget(sequence)
            case _Leave():
                for sequence in [s for s in self._sequences.values() if s.owner == connection]:
                    self._forget(sequence)
            case _UseExchange():
                if self._exchange is not None:
                    self._exchange.close()
                self._exchange = command.exchange

    def _admit(self, connection: int, submit: Submit) -> None:
        """Add a sequence. If its connection already has a sequence with this id, the new one replaces that
        sequence."""
        if present := self._sequences.get((connection, submit.sequence_id)):
            self._forget(present)
        sequence = Sequence(
            sequence_id=submit.sequence_id,
            owner=connection,
            prompt_ids=submit.prompt_ids,
            output_ids=submit.output_ids,
            params=submit.params,
            arrival=self._num_arrivals,
            priority=submit.priority,
            cache_salt=submit.cache_salt,
            is_resumed=bool(submit.output_ids),
            needs_prompt_logprobs=submit.params.prompt_logprobs is not None and not submit.output_ids,
        )
        self._num_arrivals += 1
        self._sequences[connection, submit.sequence_id] = sequence
        self._scheduler.add(sequence)

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[sequence.owner, sequence.sequence_id]
        if self._speculator is not None:
            self._speculator.forget(sequence)
        self._scheduler.remove(sequence)

    def _step(self, chunks: list[Chunk]) -> None:
        began = time.monotonic()
        try:
            compute_isolated(chunks, self._compute, self._fail)
        except NoHolderError as error:
            logger.warning("step %d failed: %s", self.num_steps, error)
            self._parked_since = began
            for chunk in chunks:
                self._fail(chunk, error)
        except ExchangeError as error:
            logger.warning("step %d is computed again over the next exchange: %s", self.num_steps, error)
            self._drop_exchange()
        else:
            self.num_steps += 1
            self._note_time(chunks, time.monotonic() - began)

    def _note_time(self, chunks: list[Chunk], seconds: float) -> None:
        sizes = [chunk.num_tokens for chunk in chunks]
        num_prefill_tokens = sum(size for size in sizes if size > 1)
        if not any(chunk.drafts for chunk in chunks):
            self._prefill_budget.note_step(sizes.count(1), num_prefill_tokens, seconds)
        if self._speculator is not None and num_prefill_tokens == 0:
            self._speculator.note_step(chunks, seconds)

    def _maintain(self, exchange: Exchange) -> None:
        try:
            exchange.maintain()
        except ExchangeError as error:
            logger.warning("the exchange has ended: %s", error)
            self._drop_exchange()

    def _compute(self, chunks: list[Chunk]) -> None:
        assert self._exchange is not None
        outputs = self._model_runner.compute(chunks, self._exchange)
        # From here on nothing raises. So a step is either committed or can be computed again.
        self._scheduler.commit(chunks)
        for sequence, logprobs in outputs.prompt_logprobs:
            sequence.prompt_logprobs += logprobs
        results, speculator = self._results, self._speculator
        for chunk, samples in outputs.samples:
            token_ids, finish_reason = results.append(chunk, samples)
            if speculator is not None:
                speculator.note_drawn(chunk, token_ids)
            if finish_reason is not None:
                self._forget(chunk.sequence)

    def _fail(self, chunk: Chunk, error: Exception) -> None:
        """Answer the sequence of a chunk that cannot be computed; do nothing if the chunk was computed after
        all."""
        if chunk.sequence.num_computed < chunk.end:
            self._end_with_error(chunk.sequence, error)
            self.num_failed_sequences += 1

    def _end_parked(self) -> None:
        """Answer all sequences with an error once none could be computed for `park_seconds`.

        While the exchange is not ready no step runs, so no step can find out. If a step has already waited in
        vain, its waiting time counts.
        """
        now = time.monotonic()
        if self.is_ready or not (self._sequences or self._inbox):
            self._parked_since = None
        elif self._parked_since is None:
            self._parked_since = now
        elif now - self._parked_since >= self._park_seconds:
            error = NotReadyError(self._park_seconds)
            logger.warning("%d sequences are given up: %s", len(self._sequences), error)
            for sequence in list(self._sequences.values()):
                self._end_with_error(sequence, error)

    def _end_with_error(self, sequence: Sequence, error: Exception) -> None:
        self._results.append_error(sequence, error)
        self._forget(sequence)

    def _drop_exchange(self) -> None:
        assert self._exchange is not None
        self._exchange.close()
        self._exchange = None
