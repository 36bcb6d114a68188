"""The grouped product of CUDA, tested on any device, since `grouped_mm` exists on a CPU as well."""

from __future__ import annotations

import pytest
import torch

from actors.checkpoint.dummy.dummy_reader import DummyReader
from actors.checkpoint.dummy.presets import preset_config
from actors.checkpoint.weights import read_expert
from actors.expert.experts import GroupedExperts, slot_table
from actors.expert.layers.grouped_mm import GroupedMatmulLayer

CONFIG = preset_config("tiny")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


def make_layer(experts: tuple[int, ...], device: str) -> GroupedMatmulLayer:
    reader = DummyReader(CONFIG)
    weights = (read_expert(reader, CONFIG, 0, expert) for expert in experts)
    on_device = (type(w)(*(tensor.to(device, torch.bfloat16) for tensor in w)) for w in weights)
    return GroupedMatmulLayer(slot_table(experts, CONFIG.num_experts).to(device), on_device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_tokens", [1, 2, 40, 300])
@pytest.mark.parametrize("experts", [tuple(range(16)), (9, 2, 4)], ids=str)
def test_it_agrees_with_the_loop(device: str, num_tokens: int, experts: tuple[int, ...]) -> None:
    rows = torch.randn(num_tokens, CONFIG.hidden_size).bfloat16()
    ids, weights = torch.rand(num_tokens, 16).argsort(dim=1)[:, :2], torch.rand(num_tokens, 2)
    ids[0, 0], ids[0, 1] = 4, 11
    ids = ids.masked_fill(~torch.isin(ids, torch.tensor(experts)), -1)
    num_results = int((ids >= 0).sum())
    loop = GroupedExperts.load(DummyReader(CONFIG), CONFIG, experts, torch.bfloat16)
    expected = loop.forward(0, rows, ids, weights, num_results)
    grouped = make_layer(experts, device)
    results = grouped(rows.to(device), ids.to(device), weights.to(device), num_results).cpu()
    assert results.shape == expected.shape
    scale = expected.float().abs().max()
    assert (results.float() - expected.float()).abs().max() < 0.02 * scale


@pytest.mark.parametrize("device", DEVICES)
def test_an_expert_that_is_taken_over_gives_the_same_bits(device: str) -> None:
    former, fresh = make_layer((2, 4), device), make_layer((4, 9), device)
    slots = slot_table((4, 9), CONFIG.num_experts).to(device)
    other = GroupedMatmulLayer(slots, [former.expert(1), fresh.expert(1)])
    rows = torch.randn(6, CONFIG.hidden_size, device=device).bfloat16()
    ids, weights = torch.tensor([[4, 9]] * 6, device=device), torch.rand(6, 2, device=device)
    assert torch.equal(other(rows, ids, weights, 12), fresh(rows, ids, weights, 12))
