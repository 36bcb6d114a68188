"""Sampling: filters, penalties, reproducible draws, reported log-probabilities."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from actors.dense.sampling.cpu_choice import Choose, choose_by_torch
from actors.dense.sampling.philox import philox, uniform
from actors.dense.sampling.sampler import Sample, token_logprobs
from actors.dense.sampling.sampler import sample as sample_by
from actors.dense.scheduling.sequence import Sequence
from actors.protocol.messages import SamplingParams
from tests.dense.sampling.choices import CHOICES

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
EOS = (5,)
_choose: Choose = choose_by_torch


@pytest.fixture(autouse=True, params=CHOICES)
def _each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with every way to choose."""
    monkeypatch.setattr(f"{__name__}._choose", request.param)


def sample(logits: torch.Tensor, sequences: list[Sequence], eos_token_ids: tuple[int, ...]) -> list[Sample]:
    return sample_by(_choose, logits, sequences, eos_token_ids)


def draw(
    logits: torch.Tensor = LOGITS,
    prompt: list[int] | None = None,
    output: list[int] | None = None,
    **params: Any,
) -> int:
    sequence = make_sequence(prompt, output, **params)
    return sample(logits[None], [sequence], EOS)[0].token_id


def make_sequence(prompt: list[int] | None, output: list[int] | None, **params: Any) -> Sequence:
    return Sequence(
        sequence_id="a",
        owner=0,
        prompt_ids=[0] if prompt is None else prompt,
        output_ids=output or [],
        params=SamplingParams(**{"max_tokens": 9, "seed": 1} | params),
        arrival=0,
    )


def frequencies(num_draws: int = 4000, **params: Any) -> dict[int, float]:
    rows = [make_sequence(None, None, **(params | {"seed": seed})) for seed in range(num_draws)]
    counts = Counter(s.token_id for s in sample(LOGITS.expand(num_draws, -1), rows, EOS))
    return {token: count / num_draws for token, count in sorted(counts.items())}


def test_philox_equals_its_published_vectors() -> None:
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox(pi, (0xA4093822, 0x299F31D0)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_uniform_numbers_fill_the_unit_interval() -> None:
    numbers = torch.tensor([uniform(seed, position) for seed in range(50) for position in range(50)])
    assert 0 <= numbers.min() < 0.01 and 0.99 < numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.02)
    assert len(set(numbers.double().tolist())) > 2490


def test_temperature_zero_takes_the_best() -> None:
    assert draw(temperature=0.0) == 0


def test_draws_follow_the_distribution() -> None:
    expected = LOGITS.softmax(-1)
    for token, share in frequencies().items():
        assert share == pytest.approx(expected[token].item(), abs=0.03)


def test_temperature_flattens() -> None:
    expected = (LOGITS / 2).softmax(-1)
    for token, share in frequencies(temperature=2.0).items():
        assert share == pytest.approx(expected[token].item(), abs=0.03)


def test_top_k_keeps_the_k_best() -> None:
    assert set(frequencies(top_k=2)) == {0, 1}


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    # cumulated: 0.545, 0.745, 0.867, 0.941, 0.968, 1
    assert set(frequencies(top_p=0.5)) == {0}
    assert set(frequencies(top_p=0.6)) == {0, 1}
    assert set(frequencies(top_p=0.86)) == {0, 1, 2}


def test_top_p_is_taken_of_what_top_k_left() -> None:
    assert set(frequencies(top_k=2, top_p=0.7)) == {0}  # 0.731 of the two


def test_min_p_is_relative_to_the_best() -> None:
    assert set(frequencies(min_p=0.2)) == {0, 1, 2}  # exp(-1.5) = 0.22, exp(-2) = 0.14


def test_top_p_beyond_the_candidates_sorts_the_whole_row() -> None:
    flat = torch.zeros(1, 5000)
    rows = [make_sequence(None, None, seed=seed, top_p=0.9) for seed in range(300)]
    tokens = [s.token_id for s in sample(flat.expand(300, -1), rows, EOS)]
    assert max(tokens) < 4501 and max(tokens) > 4000 and len(set(tokens)) > 250


def test_the_draw_depends_on_seed_and_position_only() -> None:
    alone = draw(seed=7, output=[1, 2])
    rows = [make_sequence(None, [1] * n, seed=7, temperature=1.0) for n in range(5)]
    together = sample(LOGITS.expand(5, -1), rows, EOS)
    assert together[2].token_id == alone
    assert len({draw(seed=seed) for seed in range(30)}) > 1
    assert len({draw(seed=7, output=[1] * n) for n in range(30)}) > 1


def test_repetition_penalty_covers_prompt_and_output() -> None:
    assert draw(prompt=[0], temperature=0.0, repetition_penalty=4.0) == 1  # 2 / 4 = 0.5 < 1
    assert draw(prompt=[3], output=[0], temperature=0.0, repetition_penalty=4.0) == 1
    negative = torch.tensor([-1.0, -1.5, -9, -9, -9, -9])
    assert draw(negative, prompt=[0], temperature=0.0, repetition_penalty=2.0) == 1


def test_presence_and_frequency_penalties_cover_the_output_only() -> None:
    assert draw(prompt=[0], temperature=0.0, presence_penalty=1.5) == 0
    assert draw(prompt=[3], output=[0], temperature=0.0, presence_penalty=1.5) == 1
    assert draw(prompt=[3], output=[0], temperature=0.0, frequency_penalty=0.6) == 0
    assert draw(prompt=[3], output=[0, 0], temperature=0.0, frequency_penalty=0.6) == 1


def test_logit_bias_adds() -> None:
    assert draw(temperature=0.0, logit_bias={4: 100.0}) == 4
    assert draw(temperature=0.0, logit_bias={0: -100.0}) == 1


def test_end_and_stop_tokens_wait_for_min_tokens() -> None:
    ending = torch.tensor([0.0, 1.0, 2.0, 0.0, 8.0, 9.0])
    params: dict[str, Any] = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (4,)}
    assert draw(ending, output=[0], **params) == 2
    assert draw(ending, output=[0, 0], **params) == 5
    assert draw(ending, output=[0], logit_bias={5: 100.0}, **params) == 2


def test_reported_logprobs_are_the_models_own() -> None:
    sequence = make_sequence(None, None, temperature=0.0, logit_bias={4: 100.0}, logprobs=2)
    (drawn,) = sample(LOGITS[None], [sequence], EOS)
    expected = LOGITS.log_softmax(-1)
    assert drawn.token_id == 4 and drawn.logprobs is not None
    assert drawn.logprobs.logprob == pytest.approx(expected[4].item())
    assert drawn.logprobs.rank == 5
    assert [token for token, _ in drawn.logprobs.top] == [0, 1]


def test_one_row_does_not_disturb_another() -> None:
    rows = [
        make_sequence(None, [0], temperature=0.0, presence_penalty=2.0),
        make_sequence(None, None, temperature=0.0),
    ]
    logits = LOGITS.expand(2, -1).clone()
    assert [s.token_id for s in sample(logits, rows, EOS)] == [1, 0]
    assert torch.equal(logits, LOGITS.expand(2, -1))


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    (report,) = token_logprobs(LOGITS[None], [3], 20)
    assert len(report.top) == 6
