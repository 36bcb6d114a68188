"""`Scheduler.plan` is written to be fast; it decides what this plain version decides, block for block."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dense.scheduling.block_pool import BlockPool
from actors.dense.scheduling.scheduler import Chunk, Scheduler, SchedulerLimits
from actors.dense.scheduling.sequence import Sequence
from actors.protocol.messages import SamplingParams

BLOCK_SIZE = 4


class PlainScheduler(Scheduler):
    """A scheduler that computes everything again for each sequence."""

    def plan(self, max_prefill_tokens: int | None = None) -> list[Chunk]:
        for sequence in self.running:
            if self._chooses_other_list(sequence):
                self.pool.share(sequence, self._find_prefix(sequence))
        num_preemptions = self.num_preemptions
        running = sorted(self.running, key=lambda s: s.priority_key)
        chunks: list[Chunk] = []
        budget = self.limits.max_batch_tokens
        for sequence in [s for s in running if s.num_uncomputed == 1]:
            budget -= self._extend(sequence, budget, chunks)
        if chunks and max_prefill_tokens is not None:
            budget = min(budget, max_prefill_tokens)
        for sequence in [s for s in running if s.num_uncomputed > 1]:
            budget -= self._extend(sequence, budget, chunks)
        while budget > 0 and self.num_preemptions == num_preemptions and (chunk := self._admit(budget)):
            chunks.append(chunk)
            budget -= chunk.num_tokens
        return chunks

    def _extend(self, sequence: Sequence, budget: int, chunks: list[Chunk]) -> int:
        """Tokens that were added to the step."""
        if budget <= 0 or sequence not in self.running:
            return 0
        start = sequence.num_computed
        end = start + min(sequence.num_uncomputed, budget)
        while self.pool.num_missing(sequence, end) > self.pool.num_free:
            taken = [chunk.sequence for chunk in chunks]
            later = [s for s in self.running if s.priority_key > sequence.priority_key and s not in taken]
            if not later:
                return 0
            self._preempt(max(later, key=lambda s: s.priority_key))
        self.pool.grow(sequence, end)
        chunks.append(Chunk(sequence, start, end))
        return end - start


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    step: int
    prompt_ids: list[int]
    max_tokens: int
    priority: int
    needs_prompt_logprobs: bool

    def sequence(self, arrival: int) -> Sequence:
        return Sequence(
            sequence_id=str(arrival),
            owner=0,
            prompt_ids=self.prompt_ids,
            output_ids=[],
            params=SamplingParams(max_tokens=self.max_tokens, seed=0),
            arrival=arrival,
            priority=self.priority,
            needs_prompt_logprobs=self.needs_prompt_logprobs,
        )


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        step=st.integers(0, 20),
        prompt_ids=st.lists(st.integers(0, 1), min_size=1, max_size=40),
        max_tokens=st.integers(1, 24),
        priority=st.integers(-2, 2),
        needs_prompt_logprobs=st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


def take_step(scheduler: Scheduler, max_prefill_tokens: int | None, fails: bool) -> list[object]:
    """Plan and, unless the step fails, draw a token for each sequence that samples. Return all that can be
    seen afterwards."""
    chunks = scheduler.plan(max_prefill_tokens)
    seen: list[object] = [(c.sequence.sequence_id, c.start, c.end) for c in chunks]
    sampling = [] if fails else [chunk.sequence for chunk in chunks if chunk.samples]
    if not fails:
        scheduler.commit(chunks)
    for sequence in sampling:
        sequence.output_ids.append(len(sequence.output_ids) % 2)
        if len(sequence.output_ids) == sequence.params.max_tokens:
            scheduler.remove(sequence)
    held = [(s.sequence_id, s.num_computed, s.is_long, list(s.blocks)) for s in scheduler.running]
    waiting = [s.sequence_id for s in scheduler.waiting]
    return [seen, held, waiting, scheduler.num_preemptions, scheduler.num_hit_tokens, scheduler.pool.num_free]


@settings(max_examples=150)
@given(
    arrivals=ARRIVALS,
    num_blocks=st.integers(16, 24),
    shares_prefixes=st.booleans(),
    max_num_sequences=st.integers(1, 8),
    max_batch_tokens=st.integers(1, 80),
    threshold=st.none() | st.integers(1, 60),
    max_prefill_tokens=st.none() | st.integers(0, 20),
    fail_every=st.integers(2, 9),
)
def test_plans_are_those_of_the_plain_version(
    arrivals: list[Arrival],
    num_blocks: int,
    shares_prefixes: bool,
    max_num_sequences: int,
    max_batch_tokens: int,
    threshold: int | None,
    max_prefill_tokens: int | None,
    fail_every: int,
) -> None:
    limits = SchedulerLimits(
        max_num_sequences=max_num_sequences,
        max_batch_tokens=max_batch_tokens,
        long_rope_threshold=threshold,
    )
    fast, plain = (
        kind(limits, BlockPool(num_blocks, BLOCK_SIZE, shares_prefixes))
        for kind in (Scheduler, PlainScheduler)
    )
    for step in range(200):
        for number, arrival in enumerate(arrivals):
            if arrival.step == step:
                fast.add(arrival.sequence(number))
                plain.add(arrival.sequence(number))
        fails = step % fail_every == 0
        assert take_step(fast, max_prefill_tokens, fails) == take_step(plain, max_prefill_tokens, fails)
