"""The head in one call has the same tokens and log-probabilities as norm, product and sampler called one by
one."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from actors.checkpoint.dummy.dummy_reader import DummyReader
from actors.checkpoint.weights import read_dense
from actors.dense.fast_paths.cpu_head import CpuHead
from actors.dense.layers.norm import norm_kernels
from actors.dense.model import DenseModel
from actors.dense.sampling.cpu_choice import choose_by_kernels
from actors.dense.sampling.sampler import sample
from actors.dense.scheduling.sequence import Sequence
from actors.linear import make_product
from actors.protocol.messages import SamplingParams
from tests.dense.fast_paths.test_cpu_step import KINDS
from tests.exchange.peers import CONFIG

CPU = torch.device("cpu")
GREEDY = {"temperature": 0.0}
PLAIN = [
    GREEDY,
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1.5, "top_p": 0.7, "min_p": 0.01, "seed": 4},
    {"temperature": 1.0, "top_k": 5, "seed": 5},
    GREEDY | {"logprobs": 0},
    {"temperature": 0.5, "seed": 6, "logprobs": 3},
]
ADJUSTED = [
    GREEDY | {"repetition_penalty": 1.3},
    {"temperature": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.2, "logprobs": 2, "seed": 8},
    GREEDY | {"logit_bias": {7: 50.0}},
    GREEDY | {"min_tokens": 5},
]

pytestmark = pytest.mark.skipif(norm_kernels(CONFIG, torch.float32, CPU) is None, reason="no kernels here")


@cache
def model(dtype: torch.dtype, quantization: str | None) -> DenseModel:
    return DenseModel(CONFIG, read_dense(DummyReader(CONFIG), CONFIG, dtype, "cpu"), quantization)


def drawing(params: list[dict[str, object]]) -> list[Sequence]:
    return [
        Sequence(
            sequence_id=str(index),
            owner=0,
            prompt_ids=[index + 1, 5],
            output_ids=[9, 9, index],
            params=SamplingParams(**{"max_tokens": 9, "seed": 1} | own),  # type: ignore[arg-type]
            arrival=index,
        )
        for index, own in enumerate(params)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", [PLAIN, ADJUSTED, PLAIN + ADJUSTED, [GREEDY] * 33], ids=len)
def test_tokens_and_reports_are_the_samplers(
    kind: tuple[torch.dtype, str | None], params: list[dict[str, object]]
) -> None:
    """The rows are asked for in any order, and not all of them; the second pass uses memory that was used
    before."""
    whole = model(*kind)
    head, sequences = whole.decode_head, drawing(params)
    assert head is not None
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((len(params) + 4, CONFIG.hidden_size), generator=generator).to(kind[0])
        rows = torch.randperm(len(x), generator=generator)[: len(params)].tolist()
        expected = sample(choose_by_kernels, whole.logits(x[rows]), sequences, CONFIG.eos_token_ids)
        assert head(x, rows, sequences) == expected


def test_the_kernels_draw_wherever_they_can() -> None:
    weights = read_dense(DummyReader(CONFIG), CONFIG, torch.float32, "cpu")
    assert CpuHead.make(CONFIG, weights.norm, make_product(*weights.lm_head)) is not None
    assert CpuHead.make(CONFIG, weights.norm, lambda x: x) is None
