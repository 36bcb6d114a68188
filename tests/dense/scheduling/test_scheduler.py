"""The scheduler is pure: random histories must keep its promises."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dense.scheduling.block_pool import BlockPool
from actors.dense.scheduling.scheduler import Chunk, Scheduler, SchedulerLimits
from actors.dense.scheduling.sequence import AGING_ARRIVALS, Sequence
from actors.protocol.messages import SamplingParams


def make_scheduler(
    num_blocks: int = 16,
    block_size: int = 4,
    max_num_sequences: int = 4,
    max_batch_tokens: int = 16,
    long_rope_threshold: int | None = None,
) -> Scheduler:
    limits = SchedulerLimits(
        max_num_sequences=max_num_sequences,
        max_batch_tokens=max_batch_tokens,
        long_rope_threshold=long_rope_threshold,
    )
    return Scheduler(limits, BlockPool(num_blocks, block_size))


def make_sequence(
    arrival: int, num_prompt: int, max_tokens: int = 4, priority: int = 0, is_resumed: bool = False
) -> Sequence:
    return Sequence(
        sequence_id=str(arrival),
        owner=0,
        prompt_ids=[arrival] * num_prompt,
        output_ids=[],
        params=SamplingParams(max_tokens=max_tokens, seed=0),
        arrival=arrival,
        priority=priority,
        is_resumed=is_resumed,
    )


def advance(scheduler: Scheduler) -> list[Chunk]:
    """Run one step: each sampling sequence gets a token, and finished sequences leave."""
    chunks = scheduler.plan()
    draw(scheduler, chunks)
    return chunks


def draw(scheduler: Scheduler, chunks: list[Chunk]) -> None:
    sampling = [chunk.sequence for chunk in chunks if chunk.samples]
    scheduler.commit(chunks)
    for sequence in sampling:
        sequence.output_ids.append(1)
        if len(sequence.output_ids) == sequence.params.max_tokens:
            scheduler.remove(sequence)


@settings(max_examples=300)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 24), st.integers(-2, 2)),
        min_size=1,
        max_size=12,
    ),
    num_blocks=st.integers(16, 24),
    max_num_sequences=st.integers(1, 6),
    max_batch_tokens=st.integers(1, 50),
    threshold=st.none() | st.integers(1, 60),
    cancel_every=st.integers(2, 9),
    max_prefill_tokens=st.none() | st.integers(1, 20),
)
def test_every_sequence_ends_within_the_limits_and_all_blocks_return(
    arrivals: list[tuple[int, int, int, int]],
    num_blocks: int,
    max_num_sequences: int,
    max_batch_tokens: int,
    threshold: int | None,
    cancel_every: int,
    max_prefill_tokens: int | None,
) -> None:
    scheduler = make_scheduler(num_blocks, 4, max_num_sequences, max_batch_tokens, threshold)
    pending = [
        (delay, make_sequence(i, prompt, output, priority))
        for i, (delay, prompt, output, priority) in enumerate(arrivals)
    ]
    cancelled: list[Sequence] = []
    for step in range(5000):
        while pending and pending[0][0] <= step:
            scheduler.add(pending.pop(0)[1])
        chunks = scheduler.plan(max_prefill_tokens)
        check_step(scheduler, chunks, threshold, max_prefill_tokens)
        draw(scheduler, chunks)
        if step % cancel_every == 0 and len(scheduler.running) > 1 and len(cancelled) < 2:
            cancelled.append(scheduler.running[-1])
            scheduler.remove(scheduler.running[-1])
        if not (pending or scheduler.running or scheduler.waiting):
            break
        assert chunks or pending, "nothing is computed though something waits"
    else:
        raise AssertionError("sequences starve")
    assert scheduler.pool.num_free == num_blocks


def check_step(
    scheduler: Scheduler, chunks: list[Chunk], threshold: int | None, max_prefill_tokens: int | None
) -> None:
    limits = scheduler.limits
    assert sum(chunk.num_tokens for chunk in chunks) <= limits.max_batch_tokens
    assert len(chunks) <= limits.max_num_sequences and len(scheduler.running) <= limits.max_num_sequences
    assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
    sizes = [chunk.num_tokens for chunk in chunks]
    assert all(size >= 1 for size in sizes)
    if any(chunk.start > 0 and chunk.samples and chunk.num_tokens == 1 for chunk in chunks):
        assert max_prefill_tokens is None or sum(size for size in sizes if size > 1) <= max_prefill_tokens
    held = [block for s in scheduler.running for block in s.blocks]
    assert len(set(held)) == len(held), "sequences without a common prefix share no block"
    assert len(held) + scheduler.pool.num_free == scheduler.pool.num_blocks
    assert not any(s.blocks or s.num_computed for s in scheduler.waiting)
    for chunk in chunks:
        assert chunk.start == chunk.sequence.num_computed
        assert chunk.sequence.is_long == (threshold is not None and chunk.sequence.num_tokens > threshold)


def test_a_failed_step_is_planned_again() -> None:
    scheduler = make_scheduler()
    for arrival in range(3):
        scheduler.add(make_sequence(arrival, 7))
    first = scheduler.plan()
    assert scheduler.plan() == first


def test_decoding_sequences_go_before_prefill() -> None:
    scheduler = make_scheduler(max_batch_tokens=8, num_blocks=64)
    scheduler.add(make_sequence(0, 4))
    advance(scheduler)
    scheduler.add(make_sequence(1, 40))
    chunks = advance(scheduler)
    assert [(c.sequence.arrival, c.num_tokens) for c in chunks] == [(0, 1), (1, 7)]


def test_a_crossing_sequence_is_recomputed_and_the_others_are_not() -> None:
    scheduler = make_scheduler(long_rope_threshold=10, num_blocks=64, max_batch_tokens=64)
    scheduler.add(make_sequence(0, 9, max_tokens=8))
    scheduler.add(make_sequence(1, 3, max_tokens=8))
    advance(scheduler)
    assert [c.num_tokens for c in advance(scheduler)] == [1, 1]  # 10 tokens: the limit itself
    crossing = {c.sequence.arrival: (c.start, c.end) for c in advance(scheduler)}
    assert crossing == {1: (4, 5), 0: (0, 11)}
    assert [s.is_long for s in scheduler.running] == [True, False]
    assert [c.num_tokens for c in advance(scheduler)] == [1, 1]


def test_the_youngest_gives_way_when_blocks_run_out() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4, max_batch_tokens=64)
    scheduler.add(make_sequence(0, 8, max_tokens=6))
    scheduler.add(make_sequence(1, 7, max_tokens=6))
    advance(scheduler)
    chunks = advance(scheduler)  # the first needs a third block
    assert [c.sequence.arrival for c in chunks] == [0]
    assert scheduler.num_preemptions == 1
    assert [s.arrival for s in scheduler.waiting] == [1]


def test_beside_decoding_sequences_prompts_come_in_small_chunks() -> None:
    scheduler = make_scheduler(max_batch_tokens=64, num_blocks=64)
    scheduler.add(make_sequence(0, 4))
    draw(scheduler, scheduler.plan(max_prefill_tokens=6))
    scheduler.add(make_sequence(1, 40))
    assert [c.num_tokens for c in scheduler.plan(max_prefill_tokens=6)] == [1, 6]
    assert [c.num_tokens for c in scheduler.plan(max_prefill_tokens=0)] == [1]


def test_lower_priority_numbers_are_admitted_first() -> None:
    scheduler = make_scheduler(max_num_sequences=1, num_blocks=64)
    for arrival, priority in enumerate((3, 0, -1, 0)):
        scheduler.add(make_sequence(arrival, 4, max_tokens=1, priority=priority))
    assert [advance(scheduler)[0].sequence.arrival for _ in range(4)] == [2, 1, 3, 0]


def test_a_resumed_sequence_goes_ahead_of_those_that_have_not_begun() -> None:
    scheduler = make_scheduler(max_num_sequences=1, num_blocks=64)
    for arrival in range(3):
        scheduler.add(make_sequence(arrival, 4, max_tokens=1, is_resumed=arrival == 2))
    assert advance(scheduler)[0].sequence.arrival == 2


def test_the_highest_priority_number_gives_way_when_blocks_run_out() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4, max_batch_tokens=64)
    scheduler.add(make_sequence(0, 7, max_tokens=6, priority=1))
    scheduler.add(make_sequence(1, 8, max_tokens=6))
    advance(scheduler)
    assert [c.sequence.arrival for c in advance(scheduler)] == [1]
    assert [s.arrival for s in scheduler.waiting] == [0]


@settings(max_examples=100)
@given(patient=st.integers(1, 3), others=st.lists(st.integers(-2, 0), min_size=1, max_size=4))
def test_nobody_starves_behind_an_endless_stream_of_more_important_ones(
    patient: int, others: list[int]
) -> None:
    """One sequence runs at a time, and a more important one arrives for each that ends. Aging still lets the
    first one run."""
    scheduler = make_scheduler(max_num_sequences=1, num_blocks=64)
    scheduler.add(make_sequence(0, 4, max_tokens=1, priority=patient))
    bound = AGING_ARRIVALS * (patient - min(others)) + 1
    for arrival in range(1, bound + 2):
        scheduler.add(make_sequence(arrival, 4, max_tokens=1, priority=others[arrival % len(others)]))
        if advance(scheduler)[0].sequence.arrival == 0:
            return
    raise AssertionError(f"overtaken by more than {bound} later arrivals")
