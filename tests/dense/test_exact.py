"""Greedy tokens and log-probabilities equal the reference's for all batches, chunks and interruptions."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest

from tests.dense.local_engine import LocalEngine, greedy
from tests.reference import Reference
from tests.support.small_checkpoints import CATALOGUE, ORIGINAL_MAX

NAMES = [spec.name for spec in CATALOGUE]
TOLERANCE = 1e-4
LENGTHS = [
    pytest.param(5, 10, id="short"),
    pytest.param(ORIGINAL_MAX - 8, 20, id="crosses-while-decoding"),
    pytest.param(ORIGINAL_MAX - 1, 4, id="prompt-one-below-the-limit"),
    pytest.param(ORIGINAL_MAX, 4, id="prompt-at-the-limit"),
    pytest.param(ORIGINAL_MAX + 1, 4, id="prompt-one-above-the-limit"),
    pytest.param(ORIGINAL_MAX + 30, 6, id="long-prompt"),
    pytest.param(1, 3, id="one-token"),
]


def prompt(num_tokens: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(10, 250), k=num_tokens)


@cache
def greedy_reference(
    directory: Path, prompt_ids: tuple[int, ...], num_tokens: int
) -> list[tuple[int, float]]:
    return Reference.load(directory).greedy(list(prompt_ids), num_tokens)


def assert_equals_reference(
    engine: LocalEngine, directory: Path, sequence_id: str, prompt_ids: list[int], num_tokens: int
) -> None:
    expected = greedy_reference(directory, tuple(prompt_ids), num_tokens)
    assert engine.tokens(sequence_id) == [token for token, _ in expected]
    assert engine.logprobs(sequence_id) == pytest.approx([logprob for _, logprob in expected], abs=TOLERANCE)
    assert engine.finish_reason(sequence_id) == "length"


def assert_batch_equals_reference(
    engine: LocalEngine, directory: Path, cases: list[tuple[list[int], int]]
) -> None:
    """Let the engine generate for these (prompt, number of tokens) at the same time."""
    for index, (prompt_ids, num_tokens) in enumerate(cases):
        engine.submit(str(index), prompt_ids, greedy(num_tokens))
    engine.run()
    for index, (prompt_ids, num_tokens) in enumerate(cases):
        assert_equals_reference(engine, directory, str(index), prompt_ids, num_tokens)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("prompt_tokens", "num_tokens"), LENGTHS)
def test_a_sequence_alone_equals_the_reference(
    small_checkpoints: dict[str, Path], name: str, prompt_tokens: int, num_tokens: int
) -> None:
    engine = LocalEngine(small_checkpoints[name])
    engine.submit("a", prompt(prompt_tokens), greedy(num_tokens))
    engine.run()
    assert_equals_reference(engine, small_checkpoints[name], "a", prompt(prompt_tokens), num_tokens)


@pytest.mark.parametrize(
    ("name", "max_batch_tokens"),
    [*((name, 64) for name in NAMES), (NAMES[1], 7), (NAMES[2], 7), (NAMES[1], 2048)],
)
def test_a_batch_of_32_mixed_lengths_equals_the_reference(
    small_checkpoints: dict[str, Path], name: str, max_batch_tokens: int
) -> None:
    engine = LocalEngine(small_checkpoints[name], num_blocks=1024, max_batch_tokens=max_batch_tokens)
    draw = random.Random(3)
    cases = [(prompt(draw.randint(1, 80), seed), draw.randint(1, 12)) for seed in range(32)]
    assert_batch_equals_reference(engine, small_checkpoints[name], cases)
    assert engine.pool.num_free == engine.pool.num_blocks


@pytest.mark.parametrize("name", NAMES)
def test_preempted_sequences_equal_the_reference(small_checkpoints: dict[str, Path], name: str) -> None:
    engine = LocalEngine(small_checkpoints[name], num_blocks=26, block_size=4)
    cases = [(prompt(20 + seed, seed), 30) for seed in range(6)]
    assert_batch_equals_reference(engine, small_checkpoints[name], cases)
    assert engine.scheduler.num_preemptions > 0
    assert engine.pool.num_free == engine.pool.num_blocks


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_done", [1, 9, 15])
def test_a_resumed_sequence_goes_on_as_if_nothing_had_happened(
    small_checkpoints: dict[str, Path], name: str, num_done: int
) -> None:
    engine, prompt_ids = LocalEngine(small_checkpoints[name]), prompt(ORIGINAL_MAX - 8)
    expected = [token for token, _ in greedy_reference(small_checkpoints[name], tuple(prompt_ids), 20)]
    engine.submit("a", prompt_ids, greedy(20), output_ids=expected[:num_done])
    engine.run()
    assert engine.tokens("a") == expected[num_done:]


@pytest.mark.parametrize("prompt_tokens", [2, ORIGINAL_MAX, ORIGINAL_MAX + 20])
def test_prompt_logprobs_equal_the_reference_over_chunks(
    small_checkpoints: dict[str, Path], prompt_tokens: int
) -> None:
    directory = small_checkpoints[NAMES[0]]
    engine, reference = LocalEngine(directory, max_batch_tokens=7), Reference.load(directory)
    prompt_ids = prompt(prompt_tokens)
    engine.submit("a", prompt_ids, greedy(2, prompt_logprobs=3))
    engine.submit("b", prompt(30, 1), greedy(5))
    engine.run()
    expected = reference.logits(prompt_ids).log_softmax(-1)
    reported = engine.deltas["a"][0].prompt_logprobs
    assert reported is not None
    assert [entry.token_id for entry in reported] == prompt_ids[1:]
    for position, entry in enumerate(reported):
        assert entry.logprob == pytest.approx(expected[position, entry.token_id].item(), abs=TOLERANCE)
        best = expected[position].topk(3)
        assert [token for token, _ in entry.top] == best.indices.tolist()
    assert all(delta.prompt_logprobs is None for delta in engine.deltas["a"][1:])


def test_scoring_a_prompt_alone_generates_nothing(small_checkpoints: dict[str, Path]) -> None:
    engine = LocalEngine(small_checkpoints[NAMES[0]])
    engine.submit("a", prompt(9), greedy(0, prompt_logprobs=0))
    engine.run()
    (delta,) = engine.deltas["a"]
    assert (delta.token_ids, delta.logprobs, delta.finish_reason) == ([], [], "length")
    assert delta.prompt_logprobs is not None and len(delta.prompt_logprobs) == 8
