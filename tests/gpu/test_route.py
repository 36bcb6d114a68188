"""Compares the routing kernel with the router's definition."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.device import DEVICE, HALF, MARKS

# isort: split

from actors.dense.layers import router
from actors.gpu.route import route

pytestmark = MARKS


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 16, 50])
@pytest.mark.parametrize("jitter", [0.0, 0.01, 0.4])
def test_it_chooses_and_weighs_as_the_router_does(num_tokens: int, jitter: float, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(num_tokens)
    long_chunk = torch.randn(num_tokens, 16, generator=draw) * 4
    close = (torch.randn(num_tokens, 16, generator=draw) * 0.02 + 1).round(decimals=2)
    for scores in (long_chunk, close, -close, long_chunk.round(), torch.zeros(num_tokens, 16)):
        scores = scores.to(dtype)
        expected_ids, expected_weights = router.route(scores, jitter)
        ids, weights = route(scores.to(DEVICE), jitter)
        assert torch.equal(ids.cpu(), expected_ids)
        assert torch.allclose(weights.cpu(), expected_weights, rtol=1e-5, atol=0)


def test_other_numbers_of_experts_are_taken() -> None:
    scores = torch.randn(20, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(route(scores.to(DEVICE), 0.01)[0].cpu(), router.route(scores, 0.01)[0])
