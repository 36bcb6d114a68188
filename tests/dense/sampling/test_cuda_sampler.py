"""The sampler for devices draws the same tokens as the sampler for CPUs, and waits for the device once."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actors.dense.sampling.cpu_choice import Choose, choose_by_torch, make_choose
from actors.dense.sampling.cuda_sampler import make_sampler, sample_on_device
from actors.dense.sampling.sampler import sample
from actors.dense.scheduling.sequence import Sequence
from actors.protocol.messages import SamplingParams
from tests.dense.sampling.choices import CHOICES

VOCABULARY, EOS = 2000, (5, 9)
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


def random_sequence(draw: random.Random) -> Sequence:
    """A sequence with a random mixture of parameters."""
    params: dict[str, Any] = {"max_tokens": 99, "seed": draw.getrandbits(64)}
    params["temperature"] = draw.choice([0.0, 0.3, 1.0, 1.7])
    optional: dict[str, Any] = {
        "top_k": draw.choice([1, 7, 300, VOCABULARY, VOCABULARY + 5]),
        "top_p": draw.choice([0.1, 0.5, 0.95]),
        "min_p": draw.choice([0.01, 0.3]),
        "repetition_penalty": 1.4,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {draw.randrange(VOCABULARY): 3.0, 7: -100.0},
        "min_tokens": 30,
        "stop_token_ids": (draw.randrange(VOCABULARY),),
        "logprobs": draw.choice([0, 1, 5, 20]),
    }
    params |= {name: value for name, value in optional.items() if draw.random() < 0.3}
    tokens = draw.choices(range(VOCABULARY), k=30)
    return Sequence(
        sequence_id="a",
        owner=0,
        prompt_ids=tokens[:10],
        output_ids=tokens[10 : 10 + draw.randrange(20)],
        params=SamplingParams(**params),
        arrival=0,
    )


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_it_draws_what_the_other_draws(device: str, choose: Choose) -> None:
    draw = random.Random(1)
    sequences = [random_sequence(draw) for _ in range(300)]
    logits = torch.randn(len(sequences), VOCABULARY, generator=torch.Generator().manual_seed(2)) * 3
    expected = sample(choose, logits, sequences, EOS)
    drawn = sample_on_device(logits.to(device), sequences, EOS)
    assert [one.token_id for one in drawn] == [one.token_id for one in expected]
    for one, other in zip(drawn, expected, strict=True):
        assert (one.logprobs is None) == (other.logprobs is None)
        if one.logprobs is not None and other.logprobs is not None:
            assert one.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-5)
            assert one.logprobs.rank == other.logprobs.rank
            assert [token_id for token_id, _ in one.logprobs.top] == [t for t, _ in other.logprobs.top]
            assert [p for _, p in one.logprobs.top] == pytest.approx(
                [p for _, p in other.logprobs.top], abs=1e-5
            )


def test_draws_follow_the_distribution_that_the_filters_leave() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    params = [SamplingParams(max_tokens=9, seed=seed, top_k=4, top_p=0.9) for seed in range(4000)]
    sequences = [
        Sequence(sequence_id="a", owner=0, prompt_ids=[0], output_ids=[], params=one, arrival=0)
        for one in params
    ]
    counts = Counter(one.token_id for one in sample_on_device(logits.expand(4000, -1), sequences, EOS))
    expected = logits[:3].softmax(-1)  # 0.579, 0.213, 0.129 of what four tokens have
    for token_id in range(3):
        assert counts[token_id] / 4000 == pytest.approx(expected[token_id].item(), abs=0.03)
    assert set(counts) == {0, 1, 2}


def test_the_narrowest_filter_leaves_the_likeliest() -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(1))
    params = [SamplingParams(max_tokens=9, seed=seed, top_p=0.0) for seed in range(20)]
    sequences = [
        Sequence(sequence_id="a", owner=0, prompt_ids=[0], output_ids=[], params=one, arrival=0)
        for one in params
    ]
    drawn = [one.token_id for one in sample_on_device(logits, sequences, EOS)]
    assert drawn == logits.argmax(dim=-1).tolist()


WAITING = ("item", "is_nonzero", "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")


class CountWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations whose result, or the size of it, only the device knows."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_nothing_but_the_result_is_asked_of_the_device() -> None:
    """`tolist` of the result is not counted as an operation, so the count is 0."""
    draw, logits = random.Random(3), torch.randn(40, VOCABULARY)
    sequences = [random_sequence(draw) for _ in range(40)]
    with CountWaits() as waits:
        sample_on_device(logits, sequences, EOS)
    assert waits.seen == []
    with CountWaits() as waits:
        sample(choose_by_torch, logits, sequences, EOS)
    assert len(waits.seen) > 10


def test_the_device_chooses_the_sampler() -> None:
    by_cpu = make_sampler(torch.device("cpu"))
    assert isinstance(by_cpu, partial) and (by_cpu.func, by_cpu.args) == (sample, (make_choose(),))
    assert make_sampler(torch.device("cuda")) is sample_on_device
