"""Sequences that share prefixes in any combination: each only ever sees keys and values of its own tokens.

A list stands for the cache. It records for each row what was written there: the tokens up to that position,
the LongRoPE list and the salt, which is all that keys and values depend on.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dense.scheduling.block_pool import BlockPool
from actors.dense.scheduling.scheduler import Chunk, Scheduler, SchedulerLimits
from actors.dense.scheduling.sequence import Sequence
from actors.protocol.messages import SamplingParams

BLOCK_SIZE = 4


class Played:
    """A scheduler, and a cache that records what is written to it. The tokens before a sequence's next token
    decide it."""

    def __init__(
        self,
        num_blocks: int = 24,
        max_num_sequences: int = 4,
        max_batch_tokens: int = 64,
        threshold: int | None = None,
        shares_prefixes: bool = True,
    ) -> None:
        limits = SchedulerLimits(
            max_num_sequences=max_num_sequences,
            max_batch_tokens=max_batch_tokens,
            long_rope_threshold=threshold,
        )
        self.pool = BlockPool(num_blocks, BLOCK_SIZE, shares_prefixes)
        self.scheduler = Scheduler(limits, self.pool)
        self.rows: list[object] = [None] * (num_blocks * BLOCK_SIZE)
        self.num_computed = 0
        self._num_arrivals = 0

    def sequence(
        self, prompt_ids: list[int], max_tokens: int = 1, salt: str = "", needs_prompt_logprobs: bool = False
    ) -> Sequence:
        """A new sequence, the last in priority order."""
        self._num_arrivals += 1
        return Sequence(
            sequence_id=str(self._num_arrivals),
            owner=0,
            prompt_ids=prompt_ids,
            output_ids=[],
            params=SamplingParams(max_tokens=max_tokens, seed=0),
            arrival=self._num_arrivals,
            needs_prompt_logprobs=needs_prompt_logprobs,
            cache_salt=salt,
        )

    def add(self, prompt_ids: list[int], *rest: Any, **options: Any) -> Sequence:
        """Queue a new sequence, with what `sequence` takes."""
        sequence = self.sequence(prompt_ids, *rest, **options)
        self.scheduler.add(sequence)
        return sequence

    def step(self, fails: bool = False) -> list[Chunk]:
        """Plan and compute a step. A step that fails is not committed, but it has written to the cache."""
        chunks = self.scheduler.plan()
        for chunk in chunks:
            self._write(chunk)
        for chunk in chunks:
            self._read(chunk)
        self._check_blocks()
        if fails:
            return chunks
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        self.num_computed += sum(chunk.num_tokens for chunk in chunks)
        self.scheduler.commit(chunks)
        for sequence in sampling:
            sequence.needs_prompt_logprobs = False
            sequence.output_ids.append(sum(sequence.prompt_ids + sequence.output_ids) % 2)
            if len(sequence.output_ids) == sequence.params.max_tokens:
                self.scheduler.remove(sequence)
        self._check_blocks()
        return chunks

    def run(self) -> None:
        for _ in range(5000):
            if not (self.scheduler.running or self.scheduler.waiting):
                return
            self.step()
        raise AssertionError("sequences starve")

    def _row(self, sequence: Sequence, position: int) -> int:
        return sequence.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE

    def _note(self, sequence: Sequence, position: int) -> object:
        return sequence.is_long, sequence.cache_salt, tuple(sequence.token_ids(0, position + 1))

    def _write(self, chunk: Chunk) -> None:
        for position in range(chunk.start, chunk.end):
            self.rows[self._row(chunk.sequence, position)] = self._note(chunk.sequence, position)

    def _read(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        for position in range(chunk.end):
            assert self.rows[self._row(sequence, position)] == self._note(sequence, position)

    def _check_blocks(self) -> None:
        running = self.scheduler.running
        held = {block for sequence in running for block in sequence.blocks}
        assert len(held) + self.pool.num_free == self.pool.num_blocks
        unnamed = [block for sequence in running for block in sequence.blocks[sequence.num_named :]]
        assert len(set(unnamed)) == len(unnamed), "a block that is still written to has one holder"
        assert not any(s.blocks or s.num_computed for s in self.scheduler.waiting)


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(1, 40),
        st.integers(1, 24),
        st.sampled_from(["", "", "", "other"]),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=12,
)
"""(steps after the arrival before, where the prompt leaves the common text, prompt tokens, output tokens,
salt, and a number that asks for prompt log-probabilities if it is 0)."""


@settings(max_examples=200)
@given(
    arrivals=ARRIVALS,
    num_blocks=st.integers(16, 30),
    max_num_sequences=st.integers(1, 6),
    max_batch_tokens=st.integers(1, 50),
    threshold=st.none() | st.integers(1, 60),
    cancel_every=st.integers(2, 9),
    fail_every=st.integers(2, 9),
)
def test_a_sequence_sees_its_own_tokens_alone(
    arrivals: list[tuple[int, int, int, int, str, int]],
    num_blocks: int,
    max_num_sequences: int,
    max_batch_tokens: int,
    threshold: int | None,
    cancel_every: int,
    fail_every: int,
) -> None:
    played = Played(num_blocks, max_num_sequences, max_batch_tokens, threshold)
    scheduler, step = played.scheduler, 0
    num_cancelled = 0
    for delay, leaves_at, num_prompt, num_output, salt, dice in arrivals:
        for _ in range(delay):
            step += 1
            played.step(fails=step % fail_every == 0)
        prompt_ids = [int(position >= 7 * leaves_at) for position in range(num_prompt)]
        played.add(prompt_ids, num_output, salt, needs_prompt_logprobs=dice == 0)
        if step % cancel_every == 0 and len(scheduler.running) > 1 and num_cancelled < 2:
            num_cancelled += 1
            scheduler.remove(scheduler.running[-1])
    played.run()
    assert played.pool.num_free == num_blocks
    assert 0 <= scheduler.num_hit_tokens <= scheduler.num_queried_tokens


def text(num_tokens: int, seed: int = 0) -> list[int]:
    return [1000 * seed + position for position in range(num_tokens)]


def test_a_second_sequence_begins_behind_the_full_blocks_of_the_first() -> None:
    played = Played()
    played.add(text(18))
    played.run()
    second = played.add(text(18))
    (chunk,) = played.step()
    assert (chunk.start, chunk.end) == (16, 18)
    assert second.num_cached_tokens == 16
    assert (played.scheduler.num_queried_tokens, played.scheduler.num_hit_tokens) == (36, 16)


def test_the_last_token_is_always_computed() -> None:
    played = Played()
    played.add(text(16))
    played.run()
    played.add(text(16))
    assert [(chunk.start, chunk.end) for chunk in played.step()] == [(12, 16)]


def test_a_running_sequence_shares_what_it_has_computed() -> None:
    played = Played(max_batch_tokens=64)
    first = played.add(text(18), max_tokens=20)
    played.step()
    second = played.add(text(18), max_tokens=20)
    played.step()
    assert second.blocks[:4] == first.blocks[:4]
    assert second.blocks[4] != first.blocks[4]


def test_two_that_compute_the_same_at_once_hold_one_copy_afterwards() -> None:
    played = Played()
    sequences = [played.add(text(18), max_tokens=9) for _ in range(2)]
    assert [chunk.start for chunk in played.step()] == [0, 0]
    assert sequences[0].blocks[:4] == sequences[1].blocks[:4]
    assert played.pool.num_free == played.pool.num_blocks - 6


def test_what_was_generated_is_found_as_well() -> None:
    played = Played()
    first = played.add(text(6), max_tokens=8)
    played.run()
    played.add([*first.prompt_ids, *first.output_ids, 7, 7])
    # 14 tokens, of which the last was drawn and never computed.
    assert [(chunk.start, chunk.end) for chunk in played.step()] == [(12, 16)]


@pytest.mark.parametrize("salts", [("", "a"), ("a", ""), ("a", "b")])
def test_other_salts_share_nothing(salts: tuple[str, str]) -> None:
    played = Played()
    for salt in salts:
        played.add(text(18), salt=salt)
        (chunk,) = played.step()
        assert chunk.start == 0
    played.add(text(18), salt=salts[1])
    assert played.step()[0].start == 16


def test_the_short_and_the_long_list_share_nothing() -> None:
    played = Played(threshold=20)
    played.add(text(20))
    played.run()
    played.add(text(21))
    assert played.step()[0].start == 0
    played.add(text(24))
    assert played.step()[0].start == 20
    played.add(text(20))
    assert played.step()[0].start == 16


def test_a_crossing_leaves_the_blocks_of_the_short_list_as_they_are() -> None:
    played = Played(threshold=20)
    first, second = (played.add(text(18), max_tokens=n) for n in (9, 3))
    played.step()
    short = first.blocks[:4]
    assert second.blocks[:4] == short
    played.run()
    assert first.is_long and len(first.output_ids) == 9
    third = played.add(text(18), max_tokens=2)
    played.step()
    assert third.blocks[:4] == short, "still there, and its rows were checked to be the short list's"


def test_prompt_logprobs_are_computed_and_share_their_blocks_all_the_same() -> None:
    played = Played()
    first = played.add(text(18), max_tokens=9)
    played.step()
    scored = played.add(text(18), max_tokens=9, needs_prompt_logprobs=True)
    assert [chunk.start for chunk in played.step() if chunk.sequence is scored] == [0]
    assert scored.blocks[:4] == first.blocks[:4]
    assert played.scheduler.num_queried_tokens == 18, "it did not ask"


def test_the_least_recently_used_goes_first_and_of_a_prefix_its_end() -> None:
    played = Played(num_blocks=12)
    for seed in (1, 2):
        played.add(text(18, seed))  # five blocks, four of them full
        played.run()
    played.add(text(18, 1))
    played.run()
    played.add(text(28, 3))  # seven blocks: four are unused, and three of the second's
    played.run()
    found = [played.pool.find(played.sequence(text(18, seed))) for seed in (1, 2)]
    assert [len(blocks) for blocks in found] == [4, 1]


def test_a_preempted_sequence_finds_what_it_had() -> None:
    played = Played(num_blocks=6)
    played.add(text(8, 1), max_tokens=6)
    younger = played.add(text(9, 2), max_tokens=6)
    played.run()
    assert played.scheduler.num_preemptions > 0
    assert younger.num_cached_tokens == 0
    assert played.scheduler.num_hit_tokens == 0
    assert played.num_computed < 8 + 9 + 2 * 5 + 9


def test_without_sharing_everything_is_computed() -> None:
    played = Played(shares_prefixes=False)
    for _ in range(2):
        played.add(text(18))
        assert played.step()[0].start == 0
    assert (played.scheduler.num_queried_tokens, played.scheduler.num_hit_tokens) == (0, 0)
