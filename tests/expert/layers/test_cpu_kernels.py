"""The layer of CPU kernels against the layer that loops over products."""

from __future__ import annotations

import pytest
import torch

from actors.checkpoint.weights import ExpertWeights
from actors.expert.experts import slot_table
from actors.expert.layers.cpu_kernels import GroupedLinearLayer
from actors.expert.layers.onednn import PackedLayer
from tests.support.tensors import random

HIDDEN, WIDTH, HELD = 64, 96, (1, 4, 5, 9)


def experts(dtype: torch.dtype) -> list[ExpertWeights]:
    return [
        ExpertWeights(
            w1=(random(WIDTH, HIDDEN + e)[:, e:] / 8).to(dtype),
            w2=(random(HIDDEN, WIDTH + e)[:, e:] / 8).to(dtype),
            w3=(random(WIDTH, HIDDEN + e + 9)[:, e + 9 :] / 8).to(dtype),
        )
        for e in HELD
    ]


def layer(dtype: torch.dtype) -> GroupedLinearLayer:
    if not GroupedLinearLayer.suits(dtype, HIDDEN, WIDTH):
        pytest.skip("this processor or installation has no kernels")
    return GroupedLinearLayer(slot_table(HELD, 16), experts(dtype), dtype)


def routed(num_tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    rows = random(num_tokens, HIDDEN).to(dtype)
    choice = torch.randint(0, 6, (num_tokens, 2), generator=torch.Generator().manual_seed(num_tokens))
    expert_ids = torch.tensor([-1, -1, *HELD])[choice]
    return rows, expert_ids, random(num_tokens, 2).abs(), int((expert_ids >= 0).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 64, 700])
def test_equals_the_loop_of_products(dtype: torch.dtype, num_tokens: int) -> None:
    rows, expert_ids, weights, num_results = routed(num_tokens, dtype)
    if num_results == 0:
        return
    by_kernel = layer(dtype)(rows, expert_ids, weights, num_results)
    by_loop = PackedLayer(slot_table(HELD, 16), experts(dtype))(rows, expert_ids, weights, num_results)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(by_kernel, by_loop, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_the_same_bits_however_rows_are_grouped(dtype: torch.dtype) -> None:
    compute = layer(dtype)
    rows, expert_ids, weights, num_results = routed(200, dtype)
    together = compute(rows, expert_ids, weights, num_results)
    alone = []
    for start, end in ((0, 1), (1, 8), (8, 113), (113, 200)):
        ids = expert_ids[start:end]
        count = int((ids >= 0).sum())
        if count:
            alone.append(compute(rows[start:end], ids, weights[start:end], count))
    assert torch.equal(torch.cat(alone), together)


def test_a_foreign_expert_and_a_wrong_count_are_refused() -> None:
    compute = layer(torch.float32)
    rows, weights = random(1, HIDDEN), torch.ones(1, 2)
    with pytest.raises(ValueError, match="not on this rank"):
        compute(rows, torch.tensor([[1, 2]]), weights, 2)
    with pytest.raises(ValueError, match="num_results is 2"):
        compute(rows, torch.tensor([[1, -1]]), weights, 2)
