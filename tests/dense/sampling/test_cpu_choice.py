"""Choosing tokens against a plain computation in float64, which sorts every row."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch

from actors.dense.sampling.cpu_choice import Choose, choose_by_kernels
from actors.dense.sampling.philox import uniform
from actors.dense.scheduling.sequence import Sequence
from actors.protocol.messages import SamplingParams
from tests.dense.sampling.choices import CHOICES, NO_KERNELS

BORDER = 1e-4
"""Share of all probability. If the draw is this close to another token, or to a filter's border, rounding may
decide."""


def sequence(params: SamplingParams) -> Sequence:
    return Sequence(sequence_id="a", owner=0, prompt_ids=[0], output_ids=[], params=params, arrival=0)


@dataclass(frozen=True)
class Kept:
    """The tokens that the filters keep of a row: ids by falling share, and shares that add up to at most
    1."""

    ids: list[int]
    shares: list[float]
    is_clear: bool
    """Whether no filter's border is so near that roundings decide."""


def keep(row: list[float], params: SamplingParams) -> Kept:
    best = max(row)
    weights = [math.exp(max((x - best) / params.temperature, -700.0)) for x in row]
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    ranked = sorted(range(len(row)), key=lambda i: (-shares[i], i))
    is_clear = True
    if params.min_p > 0:
        least = params.min_p * shares[ranked[0]]
        is_clear &= all(abs(shares[i] - least) > BORDER * least for i in ranked)
        ranked = [i for i in ranked if shares[i] >= least]
    if params.top_k > 0:
        ranked = ranked[: params.top_k]
    if params.top_p < 1:
        enough, before, kept = params.top_p * math.fsum(shares[i] for i in ranked), 0.0, []
        for i in ranked:
            if before >= enough:
                break
            is_clear &= abs(before - enough) > BORDER
            kept.append(i)
            before += shares[i]
        is_clear &= abs(before - enough) > BORDER
        ranked = kept
    return Kept(ranked, [shares[i] for i in ranked], is_clear)


def check(row: list[float], params: SamplingParams, token_id: int) -> None:
    """Check that this is the token of the definition, or a neighbour of it if the draw is on its border."""
    kept = keep(row, params)
    total = math.fsum(kept.shares)
    target = uniform(params.seed, 1) * total
    before = 0.0
    allowed = []
    for i, share in sorted(zip(kept.ids, kept.shares, strict=True)):
        if before - BORDER * total <= target < before + share + BORDER * total:
            allowed.append(i)
        before += share
    assert token_id in allowed or not kept.is_clear, (token_id, allowed, params)


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("vocabulary", [1, 5, 64, 517, 4001])
def test_the_token_is_what_the_definition_says(choose: Choose, vocabulary: int, spread: float) -> None:
    compare(choose, vocabulary, spread)


@NO_KERNELS
@pytest.mark.parametrize("vocabulary", [1, 5, 64, 517, 4001])
def test_where_all_are_alike_ids_decide_which_are_kept(vocabulary: int) -> None:
    """This holds for the kernels only: torch may keep any of the tokens with equal shares."""
    compare(choose_by_kernels, vocabulary, 0.0)


def compare(choose: Choose, vocabulary: int, spread: float) -> None:
    """Compare with the definition, for normally distributed scores and random mixtures of filters."""
    dice = random.Random(f"{vocabulary} {spread}")
    rows, all_params = [], []
    for _ in range(40 if vocabulary < 1000 else 10):
        rows.append([dice.gauss(0, spread) for _ in range(vocabulary)])
        all_params.append(
            SamplingParams(
                max_tokens=9,
                seed=dice.getrandbits(64),
                temperature=dice.choice([0.2, 0.7, 1.0, 2.5]),
                top_k=dice.choice([0, 0, 1, 3, 40, vocabulary, vocabulary + 3]),
                top_p=dice.choice([1.0, 1.0, 0.05, 0.5, 0.9, 0.999]),
                min_p=dice.choice([0.0, 0.0, 0.02, 0.4, 1.0]) if spread else 0.0,
            )
        )
    logits = torch.tensor(rows, dtype=torch.float32)
    chosen = choose(logits, [sequence(params) for params in all_params])
    for row, params, token_id in zip(logits.tolist(), all_params, chosen, strict=True):
        check(row, params, token_id)


@pytest.mark.parametrize("choose", CHOICES)
def test_the_first_of_equally_likely_ones_is_the_likeliest(choose: Choose) -> None:
    greedy = sequence(SamplingParams(max_tokens=9, seed=0, temperature=0.0))
    for vocabulary in (1, 7, 600, 3000):
        row = torch.zeros(3, vocabulary)
        row[1, vocabulary // 2 :] = 4.0
        row[2] = -math.inf
        assert choose(row, [greedy] * 3) == [0, vocabulary // 2, 0]


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_what_has_no_probability_is_never_drawn(choose: Choose, filters: dict[str, float]) -> None:
    logits = torch.full((500, 100), -math.inf)
    logits[:, 17], logits[:, 99] = 0.0, 0.5
    params = [
        SamplingParams(max_tokens=9, seed=seed, **filters)  # type: ignore[arg-type]
        for seed in range(500)
    ]
    rows = [sequence(one) for one in params]
    assert set(choose(logits, rows)) == {17, 99}


@NO_KERNELS
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.1}])
def test_no_number_is_no_candidate(params: dict[str, float]) -> None:
    logits = torch.randn(50, 333, generator=torch.Generator().manual_seed(1))
    spoiled = logits.clone()
    spoiled[:, 5::9] = math.nan
    seeded = [
        SamplingParams(max_tokens=9, seed=seed, **params)  # type: ignore[arg-type]
        for seed in range(50)
    ]
    rows = [sequence(one) for one in seeded]
    without = logits.clone()
    without[:, 5::9] = -math.inf
    assert choose_by_kernels(spoiled, rows) == choose_by_kernels(without, rows)
    assert choose_by_kernels(torch.full((1, 40), math.nan), rows[:1]) == [0]


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("top_p", [0.0, 1e-300])
def test_the_narrowest_filter_leaves_the_likeliest(choose: Choose, top_p: float) -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(1))
    rows = [sequence(SamplingParams(max_tokens=9, seed=seed, top_p=top_p)) for seed in range(20)]
    assert choose(logits, rows) == logits.argmax(dim=-1).tolist()


@NO_KERNELS
@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_the_coldest_temperatures_take_the_likeliest(temperature: float) -> None:
    logits = torch.randn(1, 999, generator=torch.Generator().manual_seed(1)) * 20
    rows = [sequence(SamplingParams(max_tokens=9, seed=4, temperature=temperature))]
    assert choose_by_kernels(logits, rows) == [int(logits.argmax())]
