"""With drafts the engine gives the same tokens and log-probabilities in fewer steps."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.dense.speculation import speculator
from actors.dense.speculation.draft_budget import StepCost
from actors.errors import LinkError
from actors.exchange.interface import Exchange, Handle
from actors.linear import product_name
from actors.protocol.messages import SamplingParams
from tests.dense.local_engine import LocalEngine, greedy
from tests.dense.test_engine import FailingExchange, PoisonedExchange
from tests.dense.test_exact import prompt
from tests.support.small_checkpoints import END_ID, ORIGINAL_MAX

NAMES = ["like-the-real-one", "window-16", "wide-heads", "wide-heads-window-newer"]
Case = tuple[list[int], SamplingParams]


class Guesses:
    """Stands for a sequence's lookup: it guesses the true next tokens, except that one in four is wrong."""

    truths: list[list[int]]
    draw: random.Random

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def extend(self, token_ids: list[int]) -> None:
        self.tokens += token_ids

    def propose(self, num_tokens: int) -> list[int]:
        place = len(self.tokens)
        truth = next(truth for truth in self.truths if truth[:place] == self.tokens)
        right = truth[place : place + num_tokens]
        return [token if self.draw.random() > 0.25 else (token + 1) % 290 for token in right]


class CountingExchange(FailingExchange):
    """The real exchange; it records how many rows each dispatch has."""

    def __init__(self, inner: Exchange, sizes: list[int]) -> None:
        super().__init__(inner, -1, ValueError("never raised"))
        self.sizes = sizes

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        self.sizes.append(len(rows))
        return self.inner.dispatch(layer, rows, expert_ids, weights)


def all_of_them(acceptance: list[float], limits: list[int], budget: int, cost: StepCost) -> list[int]:
    """Take all drafts that there is room for, whatever they cost and however often they were wrong."""
    counts = []
    for limit in limits:
        counts.append(min(limit, budget))
        budget -= counts[-1]
    return counts


@pytest.fixture
def guesses(monkeypatch: pytest.MonkeyPatch) -> type[Guesses]:
    monkeypatch.setattr(speculator, "draft_counts", all_of_them)
    monkeypatch.setattr(speculator, "PromptLookup", Guesses)
    Guesses.draw = random.Random(5)
    return Guesses


def run(directory: Path, cases: list[Case], max_drafts: int, **sizes: Any) -> LocalEngine:
    engine = LocalEngine(directory, max_drafts=max_drafts, **sizes)
    return finish(engine, cases)


def finish(engine: LocalEngine, cases: list[Case]) -> LocalEngine:
    for index, (prompt_ids, params) in enumerate(cases):
        engine.submit(str(index), prompt_ids, params)
    engine.run()
    assert engine.pool.num_free == engine.pool.num_blocks
    return engine


def know(guesses: type[Guesses], plain: LocalEngine, cases: list[Case]) -> None:
    guesses.truths = [[*ids, *plain.tokens(str(index))] for index, (ids, _) in enumerate(cases)]


def assert_same(plain: LocalEngine, drafted: LocalEngine, num_cases: int) -> None:
    for index in range(num_cases):
        name = str(index)
        assert drafted.tokens(name) == plain.tokens(name)
        assert drafted.finish_reason(name) == plain.finish_reason(name)
        assert drafted.deltas[name][-1].stop_token_id == plain.deltas[name][-1].stop_token_id
        assert drafted.logprobs(name) == pytest.approx(plain.logprobs(name), abs=1e-5)
        reported = [entry.token_id for delta in drafted.deltas[name] for entry in delta.logprobs]
        assert reported in ([], drafted.tokens(name))


def check(
    guesses: type[Guesses], directory: Path, cases: list[Case], **sizes: Any
) -> tuple[LocalEngine, LocalEngine]:
    """(plain, drafted), after both said the same; some drafts were right and some were not."""
    plain = run(directory, cases, 0, **sizes)
    know(guesses, plain, cases)
    drafted = run(directory, cases, 5, **sizes)
    assert_same(plain, drafted, len(cases))
    counters = drafted.engine.counters
    assert 0 < counters.accepted_draft_tokens < counters.draft_tokens
    assert plain.engine.counters.draft_tokens == 0
    return plain, drafted


def sampled(max_tokens: int, **changes: Any) -> SamplingParams:
    fixed: dict[str, Any] = {"seed": 3, "temperature": 1.0, "logprobs": 2, "ignore_eos": True}
    return SamplingParams(max_tokens=max_tokens, **(fixed | changes))


PARAMS = [
    pytest.param(greedy(24), id="greedy"),
    pytest.param(sampled(24), id="sampled"),
    pytest.param(sampled(24, top_k=5, top_p=0.9, min_p=0.01), id="filters"),
    pytest.param(greedy(24, repetition_penalty=1.2), id="repetition"),
    pytest.param(sampled(24, frequency_penalty=0.5, presence_penalty=0.5), id="frequency-and-presence"),
    pytest.param(greedy(24, frequency_penalty=2.0, logit_bias={60: 4.0, 23: 5.0}), id="bias"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("params", PARAMS)
def test_one_sequence_says_the_same(
    guesses: type[Guesses], small_checkpoints: dict[str, Path], name: str, params: SamplingParams
) -> None:
    plain, drafted = check(guesses, small_checkpoints[name], [(prompt(13), params)])
    assert drafted.engine.num_steps < plain.engine.num_steps


@pytest.mark.parametrize("name", ["wide-heads", "wide-heads-window-newer"])
def test_by_the_kernels_reported_probabilities_are_the_same_bits(
    guesses: type[Guesses], small_checkpoints: dict[str, Path], name: str
) -> None:
    if product_name(torch.float32, torch.device("cpu")) not in ("avx2", "avx512"):
        pytest.skip("this processor or installation has no kernels")
    plain, drafted = check(guesses, small_checkpoints[name], [(prompt(13), greedy(60))])
    assert drafted.logprobs("0") == plain.logprobs("0")


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 6, 7])
def test_no_token_is_drawn_that_was_not_asked_for(
    guesses: type[Guesses], small_checkpoints: dict[str, Path], num_tokens: int
) -> None:
    cases = [(prompt(9), greedy(num_tokens))]
    plain = run(small_checkpoints["plain"], cases, 0)
    know(guesses, plain, cases)
    assert_same(plain, run(small_checkpoints["plain"], cases, 5), 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_prompt", range(ORIGINAL_MAX - 7, ORIGINAL_MAX + 3, 3))
def test_no_draft_reaches_over_the_crossing(
    guesses: type[Guesses], small_checkpoints: dict[str, Path], name: str, num_prompt: int
) -> None:
    check(guesses, small_checkpoints[name], [(prompt(num_prompt), greedy(24))])


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_all_kinds_says_the_same(
    guesses: type[Guesses], small_checkpoints: dict[str, Path], name: str
) -> None:
    kinds = [greedy(40), sampled(33), greedy(25, repetition_penalty=1.1), sampled(40, presence_penalty=0.1)]
    cases = [(prompt(12 + 7 * index, index), kinds[index % 4]) for index in range(12)]
    check(guesses, small_checkpoints[name], cases, num_blocks=512)


@pytest.mark.parametrize("name", NAMES)
def test_preempted_sequences_say_the_same(
    guesses: type[Guesses], small_checkpoints: dict[str, Path], name: str
) -> None:
    cases = [(prompt(20 + index, index), greedy(30)) for index in range(6)]
    plain, drafted = check(guesses, small_checkpoints[name], cases, num_blocks=26, block_size=4)
    assert plain.scheduler.num_preemptions > 0 and drafted.scheduler.num_preemptions > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block_size", [1, 4])
def test_no_prefix_is_shared_that_holds_a_draft_which_was_wrong(
    guesses: type[Guesses], small_checkpoints: dict[str, Path], name: str, block_size: int
) -> None:
    """There are two rounds of conversations. The second continues what the first one said, some of it
    twice."""
    # Another seed draws within a millionth of the edge between two tokens. There rounding decides, and it
    # differs between a prefix that is computed again and one that was kept.
    directory, params = small_checkpoints[name], sampled(24, seed=4)
    first = [(prompt(9 + 5 * (index // 2), index // 2), params) for index in range(6)]
    plain = run(directory, first, 0, shares_prefixes=False)
    said = [[*ids, *plain.tokens(str(index))] for index, (ids, _) in enumerate(first)]
    second = [(ids[:end], params) for ids in said for end in (len(ids), len(ids) - 7)]
    later = run(directory, second, 0, shares_prefixes=False)
    engine = LocalEngine(directory, max_drafts=5, block_size=block_size, num_blocks=256 // block_size * 4)
    know(guesses, plain, first)
    assert_same(plain, finish(engine, first), len(first))
    engine.deltas.clear()
    num_hits = engine.scheduler.num_hit_tokens
    know(guesses, later, second)
    assert_same(later, finish(engine, second), len(second))
    assert engine.scheduler.num_hit_tokens - num_hits > 12 * 9
    counters = engine.engine.counters
    assert 0 < counters.accepted_draft_tokens < counters.draft_tokens


def test_what_was_cached_is_told_where_drafts_come_with_the_first_token(
    guesses: type[Guesses], small_checkpoints: dict[str, Path]
) -> None:
    directory, cases = small_checkpoints["wide-heads"], [(prompt(9), greedy(24))]
    engine = LocalEngine(directory, max_drafts=5)
    guesses.truths = [prompt(9) + run(directory, cases, 0).tokens("0")]
    for _ in range(2):
        engine.deltas.clear()
        guesses.draw = random.Random(5)
        finish(engine, cases)
    assert [delta.num_cached_tokens for delta in engine.deltas["0"]] == [8] + [None] * (
        len(engine.deltas["0"]) - 1
    )
    assert len(engine.deltas["0"][0].token_ids) > 1


def test_a_step_holds_no_more_tokens_than_it_may(
    guesses: type[Guesses], small_checkpoints: dict[str, Path]
) -> None:
    cases = [(prompt(20, index), greedy(30)) for index in range(3)]
    sizes: list[int] = []
    plain = run(small_checkpoints["plain"], cases, 0)
    know(guesses, plain, cases)
    engine = LocalEngine(small_checkpoints["plain"], max_drafts=5, max_batch_tokens=7)
    engine.exchange = CountingExchange(engine.exchange, sizes)
    assert_same(plain, finish(engine, cases), 3)
    assert max(sizes) == 7


def test_a_sequence_ends_where_a_draft_is_its_end(
    guesses: type[Guesses], small_checkpoints: dict[str, Path]
) -> None:
    directory = small_checkpoints["wide-heads"]
    tokens = run(directory, [(prompt(9), sampled(30))], 0).tokens("0")
    endings: list[dict[str, Any]] = [
        *({"stop_token_ids": (stop,)} for stop in tokens[2:20:3]),
        {"stop_token_ids": (tokens[4],), "min_tokens": 12, "logit_bias": {tokens[4]: 7.0}},
        {"ignore_eos": False, "logit_bias": {END_ID: 3.0}},
        {"ignore_eos": False, "logit_bias": {END_ID: 9.0}, "min_tokens": 8},
    ]
    for changes in endings:
        cases = [(prompt(9), sampled(60, **changes))]
        plain = run(directory, cases, 0)
        guesses.truths = [prompt(9) + plain.tokens("0") + [11] * 9]
        assert_same(plain, run(directory, cases, 5), 1)
        assert plain.finish_reason("0") == "stop", changes


def test_a_resumed_sequence_goes_on_in_the_middle_of_what_was_accepted(
    guesses: type[Guesses], small_checkpoints: dict[str, Path]
) -> None:
    directory, params = small_checkpoints["wide-heads"], sampled(40)
    plain = run(directory, [(prompt(20), params)], 0)
    know(guesses, plain, [(prompt(20), params)])
    expected = plain.tokens("0")
    for num_done in range(1, 40, 6):
        engine = LocalEngine(directory, max_drafts=5)
        engine.submit("a", prompt(20), params, output_ids=expected[:num_done])
        engine.run()
        assert engine.tokens("a") == expected[num_done:]


@pytest.mark.parametrize("failing_dispatch", [5, 8, 13])
def test_a_step_with_drafts_that_fails_is_computed_again(
    guesses: type[Guesses], small_checkpoints: dict[str, Path], failing_dispatch: int
) -> None:
    directory, cases = small_checkpoints["wide-heads"], [(prompt(20), greedy(40))]
    plain = run(directory, cases, 0)
    know(guesses, plain, cases)
    engine = LocalEngine(directory, max_drafts=5)
    broken = FailingExchange(engine.exchange, failing_dispatch, LinkError("expert-0", 1, "it died"))
    engine.engine.use_exchange(broken)
    engine.submit("0", *cases[0])
    for _ in range(12):
        engine.engine.step_once()
    assert broken.has_fired
    engine.run()
    assert_same(plain, engine, 1)


def test_drafts_that_cannot_be_computed_fail_no_sequence(
    guesses: type[Guesses], small_checkpoints: dict[str, Path]
) -> None:
    directory = small_checkpoints["wide-heads"]
    cases = [(prompt(4, index), greedy(30)) for index in range(3)]
    plain = run(directory, cases, 0)
    know(guesses, plain, cases)
    engine = LocalEngine(directory, max_drafts=5)
    exchange = PoisonedExchange(engine.exchange, ZeroDivisionError("poison"), max_rows=5)
    engine.exchange = exchange
    assert_same(plain, finish(engine, cases), 3)
    assert exchange.num_fired > 0 and engine.engine.num_failed_sequences == 0


class FixedCost(StepCost):
    """Measures the same time for a step of `num_rows` rows on every machine."""

    def note(self, num_rows: int, seconds: float) -> None:
        super().note(num_rows, 1 + 0.1 * num_rows)


def test_what_repeats_itself_takes_fewer_steps_and_what_does_not_gets_few_drafts(
    monkeypatch: pytest.MonkeyPatch, small_checkpoints: dict[str, Path]
) -> None:
    """The speculator decides by itself: it notices a loop, and tries nothing if nothing was ever right."""
    monkeypatch.setattr(speculator, "StepCost", FixedCost)
    directory = small_checkpoints["wide-heads"]
    loop = [(prompt(20), greedy(120, logit_bias={7: 100.0}))]
    assert run(directory, loop, 8).engine.num_steps < 80
    wild = [([5, 6] * 10, sampled(120, temperature=50.0))]
    engine = run(directory, wild, 8).engine
    assert engine.num_steps > 100 and engine.counters.draft_tokens < 20


def test_beside_prompts_that_are_computed_or_wait_there_are_no_drafts(
    guesses: type[Guesses], small_checkpoints: dict[str, Path]
) -> None:
    engine = LocalEngine(small_checkpoints["wide-heads"], max_drafts=8, max_num_sequences=1)
    guesses.truths = [[*prompt(20), *([7] * 60)]]
    engine.submit("a", prompt(20), greedy(30, logit_bias={7: 100.0}))
    engine.submit("b", prompt(21, 1), greedy(30))
    engine.engine.use_exchange(engine.exchange)
    while engine.scheduler.waiting or not engine.scheduler.running:
        engine.engine.step_once()
    assert engine.tokens("a") == [7] * 30 and engine.engine.counters.draft_tokens == 0
