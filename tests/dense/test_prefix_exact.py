"""Sequences that find their prefix computed get the tokens and log-probabilities that they would have had."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actors.protocol.messages import SamplingParams
from tests.dense.local_engine import LocalEngine, greedy
from tests.dense.test_exact import assert_equals_reference, prompt
from tests.support.small_checkpoints import ORIGINAL_MAX


def common(num_tokens: int, own_tokens: int, seed: int) -> list[int]:
    """A prompt that shares all but its last `own_tokens` tokens with the others."""
    return prompt(ORIGINAL_MAX + 40)[: num_tokens - own_tokens] + prompt(own_tokens, seed)


CASES = [
    (common(30, 3, 1), 12),
    (common(30, 3, 2), 25),  # crosses while it shares
    (common(44, 1, 3), 12),  # crosses soon
    (common(ORIGINAL_MAX + 9, 4, 4), 6),  # long from the beginning
    (common(ORIGINAL_MAX + 9, 1, 5), 9),
    (common(30, 0, 6), 30),
    (common(29, 0, 7), 3),
    (common(ORIGINAL_MAX, 2, 8), 4),
]


@pytest.mark.parametrize(
    "name", ["like-the-real-one", "window-16", "default-rope-window", "wide-heads", "wide-heads-window-newer"]
)
@pytest.mark.parametrize("num_blocks", [pytest.param(512, id="room"), pytest.param(26, id="preemption")])
def test_sequences_with_a_common_prefix_equal_the_reference(
    small_checkpoints: dict[str, Path], name: str, num_blocks: int
) -> None:
    engine = LocalEngine(small_checkpoints[name], num_blocks=num_blocks)
    engine.engine.use_exchange(engine.exchange)
    for run in ("first", "again"):
        for index, (prompt_ids, num_tokens) in enumerate(CASES):
            engine.submit(f"{run}-{index}", prompt_ids, greedy(num_tokens))
            engine.engine.step_once()
        engine.run()
        for index, (prompt_ids, num_tokens) in enumerate(CASES):
            assert_equals_reference(engine, small_checkpoints[name], f"{run}-{index}", prompt_ids, num_tokens)
    assert engine.scheduler.num_hit_tokens > 0.3 * engine.scheduler.num_queried_tokens
    assert (engine.scheduler.num_preemptions > 0) == (num_blocks == 26)
    assert engine.pool.num_free == engine.pool.num_blocks


def test_the_first_output_of_a_sequence_says_how_much_of_it_was_found(
    small_checkpoints: dict[str, Path],
) -> None:
    engine = LocalEngine(small_checkpoints["plain"], block_size=4)
    for index, salt in enumerate(["", "", "other"]):
        engine.submit(str(index), prompt(18), greedy(3), cache_salt=salt)
        engine.run()
    engine.submit("resumed", prompt(18), greedy(3), output_ids=engine.tokens("0")[:1])
    engine.run()
    reported = {key: [delta.num_cached_tokens for delta in deltas] for key, deltas in engine.deltas.items()}
    assert reported == {
        "0": [0, None, None],
        "1": [16, None, None],
        "2": [0, None, None],
        "resumed": [None, None],
    }
    load = engine.engine.load
    assert (load.prefix_queried_tokens, load.prefix_hit_tokens) == (18 + 18 + 18 + 19, 16 + 16)


def test_prompt_logprobs_are_whole_though_the_prompt_is_cached(small_checkpoints: dict[str, Path]) -> None:
    engine = LocalEngine(small_checkpoints["plain"])
    for key in "ab":
        engine.submit(key, prompt(30), greedy(2, prompt_logprobs=2))
        engine.run()
    first, second = (engine.deltas[key][0] for key in "ab")
    assert first.prompt_logprobs is not None and len(first.prompt_logprobs) == 29
    assert second.prompt_logprobs == first.prompt_logprobs
    assert second.num_cached_tokens == 0


def test_drawn_tokens_are_the_same_with_and_without_sharing(small_checkpoints: dict[str, Path]) -> None:
    draw = random.Random(5)
    engines = [
        LocalEngine(small_checkpoints["window-16"], num_blocks=40, shares_prefixes=shares)
        for shares in (True, False)
    ]
    for index in range(16):
        num_tokens = draw.randint(1, ORIGINAL_MAX + 20)
        prompt_ids = common(num_tokens, min(num_tokens, draw.randint(0, 5)), index)
        params = SamplingParams(max_tokens=draw.randint(1, 20), seed=index, temperature=1.0, ignore_eos=True)
        for engine in engines:
            engine.submit(str(index), prompt_ids, params)
    for engine in engines:
        engine.run()
    shared, plain = engines
    assert [shared.tokens(str(index)) for index in range(16)] == [
        plain.tokens(str(index)) for index in range(16)
    ]
    assert shared.scheduler.num_hit_tokens > 0 and plain.scheduler.num_hit_tokens == 0
