"""How many prompt tokens may join a step: the promised bound on its duration holds on machines of any
speed."""

from __future__ import annotations

import itertools
import statistics

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dense.scheduling.prefill_budget import PrefillBudget


def run_steps(
    prefill_budget: PrefillBudget, num_decodes: int, alone: float, per_token: float, count: int = 200
) -> list[tuple[int, float]]:
    """(prefill tokens, seconds) of steps on a machine with these durations."""
    steps = []
    for _ in range(count):
        tokens = prefill_budget.max_prefill_tokens(num_decodes, 1)
        seconds = alone + per_token * tokens
        prefill_budget.note_step(num_decodes, tokens, seconds)
        steps.append((tokens, seconds))
    return steps


@settings(max_examples=200)
@given(
    alone=st.floats(1e-3, 0.5),
    per_token=st.floats(1e-6, 1e-2),
    num_decodes=st.integers(1, 300),
    stretch=st.floats(1.1, 5.0),
)
def test_once_measured_a_step_is_not_stretched_further_than_allowed(
    alone: float, per_token: float, num_decodes: int, stretch: float
) -> None:
    steps = run_steps(PrefillBudget(stretch, 2048), num_decodes, alone, per_token)
    allowed = alone + max((stretch - 1) * alone, 16 * per_token)
    assert sum(seconds > allowed * 1.01 for _, seconds in steps) <= 1
    room = min(2048.0, (stretch - 1) * alone / per_token)
    assert (
        max(tokens for tokens, _ in steps) >= min(16, 2048)
        and max(tokens for tokens, _ in steps) >= room / 2.1
    )


@settings(max_examples=60)
@given(
    alone=st.floats(1e-2, 0.2),
    fixed=st.floats(0.0, 0.9),
    per_token=st.floats(1e-5, 1e-3),
    prompts=st.lists(st.integers(64, 700), min_size=20, max_size=20),
)
def test_what_prompts_cost_however_short_they_are_is_not_taken_for_a_price_per_token(
    alone: float, fixed: float, per_token: float, prompts: list[int]
) -> None:
    """If it were, short chunks would make tokens seem expensive, and expensive tokens would keep chunks
    short."""
    prefill_budget, fixed = PrefillBudget(2.0, 2048), fixed * alone
    bounds = []
    for length in prompts * 10:
        left = length
        while left > 0:
            tokens = min(left, bound := prefill_budget.max_prefill_tokens(8, 1))
            prefill_budget.note_step(8, tokens, alone + (fixed + per_token * tokens if tokens else 0.0))
            left -= tokens
            bounds += [bound] if bound else []
    room = (alone - fixed) / per_token
    usual = statistics.median(bounds[-200:])
    assert min(128, room) / 4 <= usual <= max(16, 2 * room)


def test_the_decoding_alone_is_measured_now_and_then() -> None:
    steps = run_steps(PrefillBudget(2.0, 2048), 8, 0.01, 1e-4)
    without = [index for index, (tokens, _) in enumerate(steps) if tokens == 0]
    assert without[0] == 0 and all(b - a == 33 for a, b in itertools.pairwise(without))


def test_a_machine_that_becomes_slower_gets_smaller_prompts() -> None:
    prefill_budget = PrefillBudget(2.0, 2048)
    fast = max(run_steps(prefill_budget, 8, 0.02, 1e-4))[0]
    run_steps(prefill_budget, 8, 0.02, 8e-4)
    assert max(run_steps(prefill_budget, 8, 0.02, 8e-4))[0] <= fast / 4


def test_one_step_that_hung_does_not_allow_long_ones() -> None:
    prefill_budget = PrefillBudget(2.0, 2048)
    before = max(run_steps(prefill_budget, 8, 0.02, 1e-4))[0]
    prefill_budget.note_step(8, 0, 30.0)
    assert prefill_budget.max_prefill_tokens(8, 1) <= 2 * before


def test_the_scatter_of_short_prompts_does_not_allow_a_long_one() -> None:
    prefill_budget = PrefillBudget(2.0, 2048)
    prefill_budget.note_step(8, 0, 0.02)
    prefill_budget.note_step(8, 2000, 0.3)
    for _ in range(300):
        prefill_budget.note_step(8, 4, 0.03)
        prefill_budget.note_step(8, 12, 0.021)
        prefill_budget.note_step(8, 0, 0.02)
    assert 16 <= prefill_budget.max_prefill_tokens(8, 1) <= 32


def test_where_nobody_decodes_prompts_take_the_whole_step() -> None:
    assert PrefillBudget(2.0, 2048).max_prefill_tokens(0, 3) == 2048


def test_a_few_that_decode_do_not_hold_up_many_prompts() -> None:
    prefill_budget = PrefillBudget(2.0, 2048)
    run_steps(prefill_budget, 4, 0.02, 1e-3)
    assert prefill_budget.max_prefill_tokens(4, 5) == 2048
    assert prefill_budget.max_prefill_tokens(4, 4) < 64
