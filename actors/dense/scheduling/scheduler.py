"""Which tokens of which sequences the next step computes. Pure: no clock, no tensors, no randomness.

A step takes up to `max_batch_tokens` tokens of up to `max_num_sequences` sequences:

    1. sequences that decode (one token each), in order of their turn
    2. sequences in prefill, in order of their turn, as large a chunk as the budget leaves; beside sequences that decode
       the budget is the smaller one that the caller names, so that those do not wait for long
    3. waiting sequences, in order of their turn, while budget, places and blocks last

The order of turns is that of arrival, shifted by priority; it never changes, so nobody is overtaken for ever. When blocks
run out, the running sequence with the latest turn gives up its own and waits to be recomputed (preemption).
When a sequence grows past LongRoPE's limit its cached keys are stale: it gives up its blocks, which others may hold as
well, and is recomputed from its first token in new ones, while all others go on.
A sequence begins behind the longest prefix whose blocks the pool still has (`block_pool.py`).
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter

from actors.dense.scheduling.block_pool import BlockPool
from actors.dense.scheduling.sequence import Sequence

_TURN = attrgetter("turn")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens at positions start .. end - 1 of one sequence, to be computed in one step, and guesses of those behind."""

    sequence: Sequence
    start: int
    end: int
    drafts: tuple[int, ...] = ()
    """What may follow the sequence's last token, which is then the chunk's only one (`speculator.py`)."""

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def num_rows(self) -> int:
        """Tokens and drafts."""
        return self.end - self.start + len(self.drafts)

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the last token, so that the next one can be drawn."""
        return self.end == self.sequence.num_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerLimits:
    """What one step may hold."""

    max_num_sequences: int
    max_batch_tokens: int
    long_rope_threshold: int | None
    """Longest sequence, in tokens, that uses LongRoPE's short list; None without LongRoPE."""


class Scheduler:
    """Owns the waiting and running sequences and, through the pool, every block that they hold."""

    def __init__(self, limits: SchedulerLimits, pool: BlockPool) -> None:
        self.limits = limits
        self.pool = pool
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_queried_tokens = 0
        """Tokens of sequences that were looked up among the cached prefixes, each once."""
        self.num_hit_tokens = 0
        """Of those, tokens that were found and not computed again."""
        self._preempted: set[Sequence] = set()
        """By the plan that is being made, or else by the last one."""

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. It must fit the pool when alone: the front checks that."""
        assert self.pool.num_missing(sequence, sequence.num_tokens) <= self.pool.num_blocks
        self._enqueue(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or cancelled; its blocks are free at once."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.pool.release(sequence)

    def plan(self, max_prefill_tokens: int | None = None) -> list[Chunk]:
        """The next step; empty when there is nothing to compute.

        `max_prefill_tokens` bounds what a step computes of prompts where it has sequences that decode. Where the step
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
        """Take note that the step was computed."""
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.end
            self.pool.note_computed(chunk.sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_TURN)

    def _sort_running(self) -> tuple[list[Sequence], list[Sequence]]:
        """Those that decode and those in prefill, each in order of their turn and with the list that fits its length."""
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
        decoding.sort(key=_TURN)
        prefilling.sort(key=_TURN)
        return decoding, prefilling

    def _chooses_other_list(self, sequence: Sequence) -> bool:
        """Take LongRoPE's list by the sequence's length; True where it is another one, and all blocks are given up."""
        threshold = self.limits.long_rope_threshold
        is_long = threshold is not None and sequence.num_tokens > threshold
        if is_long == sequence.is_long:
            return False
        self.pool.release(sequence)
        sequence.use_list(is_long)
        return True

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Nothing where all of the prompt has to be computed, since somebody wants to see it."""
        return [] if sequence.needs_prompt_logprobs else self.pool.find(sequence)

    def _extend_all(self, sequences: list[Sequence], budget: int, chunks: list[Chunk]) -> int:
        """Add the next tokens of these running sequences to the step; the budget that is left."""
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
        """Find room by preemption; False where the sequence has to wait for those that are in this step already.

        The first in turn always finds room: it may take everybody's blocks, and it fits the pool when alone.
        """
        taken = {chunk.sequence for chunk in chunks}
        while not self.pool.grow(sequence, end):
            later = [s for s in self.running if s.turn > sequence.turn and s not in taken]
            if not later:
                return False
            self._preempt(max(later, key=_TURN))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence)
        sequence.restart()
        self._enqueue(sequence)
        self.num_preemptions += 1
        self._preempted.add(sequence)

    def _admit(self, budget: int) -> Chunk | None:
        """Move the first waiting sequence to the running ones if all of its present tokens find room."""
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
        """What a sequence finds of its own when it comes back after a preemption is no merit."""
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
            if self.pool.shares_prefixes and not sequence.needs_prompt_logprobs:
                self.num_queried_tokens += sequence.num_tokens
                self.num_hit_tokens += sequence.num_computed
