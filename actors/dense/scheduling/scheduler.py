"""Which tokens of which sequences the next step computes. Pure: no clock, no tensors, no randomness.

A step takes up to `max_batch_tokens` tokens of up to `max_num_sequences` sequences:

    1. sequences that decode (one token each), in priority order
    2. sequences in prefill, in priority order, each with as large a chunk as the budget leaves; if
       sequences decode in the same step, the caller gives a smaller budget, so that those do not wait long
    3. waiting sequences, in priority order, while budget, slots for sequences and blocks last

The priority order is the order of arrival, shifted by priority (`Sequence.priority_key`). It never changes,
so no sequence is overtaken for ever. When blocks run out, the running sequence that is last in priority order
gives up its blocks and waits to be recomputed (preemption).

When a sequence grows past LongRoPE's limit its cached keys are stale. It gives up its blocks, which other
sequences may hold as well, and is recomputed from its first token in new ones, while all other sequences go
on.

A sequence starts after the longest prefix whose blocks the pool still has (`block_pool.py`).
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter

from actors.dense.scheduling.block_pool import BlockPool
from actors.dense.scheduling.sequence import Sequence

_PRIORITY_KEY = attrgetter("priority_key")


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens at positions start .. end - 1 of one sequence that one step computes, and guesses of the
    tokens after them."""

    sequence: Sequence
    start: int
    end: int
    drafts: tuple[int, ...] = ()
    """Guesses of what follows the sequence's last token. With drafts, that token is the chunk's only one
    (`speculator.py`)."""

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def num_rows(self) -> int:
        """Number of tokens and drafts."""
        return self.end - self.start + len(self.drafts)

    @property
    def samples(self) -> bool:
        """Whether the chunk contains the sequence's last token, so that the next token can be sampled."""
        return self.end == self.sequence.num_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerLimits:
    """Limits of one step."""

    max_num_sequences: int
    max_batch_tokens: int
    long_rope_threshold: int | None
    """Greatest length in tokens for LongRoPE's short list; None if the model has no LongRoPE."""


class Scheduler:
    """The waiting and the running sequences and, through the pool, every block that they hold."""

    def __init__(self, limits: SchedulerLimits, pool: BlockPool) -> None:
        self.limits = limits
        self.pool = pool
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_queried_tokens = 0
        """Prompt and output tokens that were looked up among the cached prefixes; each sequence counts
        once."""
        self.num_hit_tokens = 0
        """Tokens among `num_queried_tokens` that were found and did not have to be computed again."""
        self._preempted: set[Sequence] = set()
        """Sequences that the current plan has preempted or, between two plans, that the last plan
        preempted."""

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. The ingress server has checked that the pool can hold the sequence when no
        other is there."""
        assert self.pool.num_missing(sequence, sequence.num_tokens) <= self.pool.num_blocks
        self._enqueue(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has finished or is cancelled; its blocks are free at once."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.pool.release(sequence)

    def plan(self, max_prefill_tokens: int | None = None) -> list[Chunk]:
        """Return the chunks of the next step; the list is empty if there is nothing to compute.

        `max_prefill_tokens` bounds the prompt tokens of a step in which other sequences decode. If the step
        fails and `commit` is not called, the next plan computes the same tokens again.
        """
        self._preempted.clear()
        decoding, prefilling = self._sort_running()
        chunks: list[Chunk] = []
        budget = self._extend_all(decoding, self.limits.max_batch_tokens, chunks)
        if chunks and max_prefill_tokens is not None:
            budget = min(budget, max_prefill_tokens)
        budget = self._extend_all(prefilling, budget, chunks)
        while budget > 0 and not self._preempted:
            chunk = self._admit(budget)
            if chunk is None:
                break
            chunks.append(chunk)
            budget -= chunk.num_tokens
        return chunks

    def commit(self, chunks: list[Chunk]) -> None:
        """Record that the step was computed."""
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.end
            self.pool.note_computed(chunk.sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_PRIORITY_KEY)

    def _sort_running(self) -> tuple[list[Sequence], list[Sequence]]:
        """The sequences that decode and those in prefill, each in priority order and with the LongRoPE list
        that fits its length."""
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for sequence in self.running:
            if self._chooses_other_list(sequence):
                self.pool.share(sequence, self._find_prefix(sequence))
            num_uncomputed = sequence.num_uncomputed
            if num_uncomputed == 1:
                decoding.append(sequence)
            elif num_uncomputed > 1:
                prefilling.append(sequence)
        decoding.sort(key=_PRIORITY_KEY)
        prefilling.sort(key=_PRIORITY_KEY)
        return decoding, prefilling

    def _chooses_other_list(self, sequence: Sequence) -> bool:
        """Choose LongRoPE's list by the sequence's length. If the list changes, release all blocks and return
        True."""
        threshold = self.limits.long_rope_threshold
        is_long = threshold is not None and sequence.num_tokens > threshold
        if is_long == sequence.is_long:
            return False
        self.pool.release(sequence)
        sequence.use_list(is_long)
        return True

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """The cached blocks of the sequence's prefix; none if it reports prompt log-probabilities, for which
        the whole prompt must be computed."""
        return [] if sequence.needs_prompt_logprobs else self.pool.find(sequence)

    def _extend_all(self, sequences: list[Sequence], budget: int, chunks: list[Chunk]) -> int:
        """Add the next tokens of these running sequences to `chunks`; return the budget that is left."""
        for sequence in sequences:
            if budget <= 0:
                break
            if sequence in self._preempted:
                continue
            start = sequence.num_computed
            end = min(sequence.num_tokens, start + budget)
            if self.pool.grow(sequence, end) or self._grow_at_cost_of_later(sequence, end, chunks):
                chunks.append(Chunk(sequence, start, end))
                budget -= end - start
        return budget

    def _grow_at_cost_of_later(self, sequence: Sequence, end: int, chunks: list[Chunk]) -> bool:
        """Preempt later sequences until `sequence` has room. Return False if it must wait for sequences that
        are in this step.

        The first sequence in priority order always finds room: it may take the blocks of all others, and the
        pool can hold it alone.
        """
        taken = {chunk.sequence for chunk in chunks}
        while not self.pool.grow(sequence, end):
            later = [s for s in self.running if s.priority_key > sequence.priority_key and s not in taken]
            if not later:
                return False
            self._preempt(max(later, key=_PRIORITY_KEY))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence)
        sequence.restart()
        self._enqueue(sequence)
        self.num_preemptions += 1
        self._preempted.add(sequence)

    def _admit(self, budget: int) -> Chunk | None:
        """Move the first waiting sequence to the running ones and return its chunk, or None if its present
        tokens find no room."""
        if not self.waiting or len(self.running) >= self.limits.max_num_sequences:
            return None
        sequence = self.waiting[0]
        self._chooses_other_list(sequence)
        found = self._find_prefix(sequence)
        if self.pool.num_missing(sequence, sequence.num_tokens) - len(found) > self.pool.num_free_beside(
            found
        ):
            return None
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self.pool.share(sequence, found)
        self._count_prefix(sequence)
        end = min(sequence.num_tokens, sequence.num_computed + budget)
        self.pool.grow(sequence, end)
        return Chunk(sequence, sequence.num_computed, end)

    def _count_prefix(self, sequence: Sequence) -> None:
        """Count the prefix hits of a sequence once. Blocks that it finds again after a preemption are its own
        and do not count."""
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
            if self.pool.shares_prefixes and not sequence.needs_prompt_logprobs:
                self.num_queried_tokens += sequence.num_tokens
                self.num_hit_tokens += sequence.num_computed
