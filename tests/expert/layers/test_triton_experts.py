"""The Triton layer against the layer that loops over experts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.gpu.device import DEVICE, HALF, MARKS

# isort: split

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.dummy.dummy_reader import DummyReader
from actors.checkpoint.dummy.presets import preset_config
from actors.checkpoint.quantization import group_size
from actors.checkpoint.quantized_weight import QuantizedExpert, QuantizedWeight, quantize
from actors.checkpoint.weights import ExpertWeights, read_expert
from actors.exchange.combine import add_choices
from actors.expert.experts import slot_table
from actors.expert.layers.onednn import PackedLayer
from actors.expert.layers.triton_experts import TritonLayer

pytestmark = MARKS
TINY = preset_config("tiny")
UNEVEN = dataclasses.replace(TINY, hidden_size=72, intermediate_size=200)
TOLERANCE = {torch.float32: 1e-5, HALF: 1e-2}
ALL = tuple(range(16))
KINDS = ["int8", "fp8"] if DEVICE.type == "cuda" else ["int8"]
"""Triton's interpreter does not know fp8."""


def two_layers(
    config: ModelConfig, experts: tuple[int, ...], dtype: torch.dtype
) -> tuple[PackedLayer, TritonLayer]:
    """The looping layer on a CPU, and the layer of kernels on the device."""
    reader = DummyReader(config)
    table = slot_table(experts, config.num_experts)
    stored = [read_expert(reader, config, 0, expert) for expert in experts]
    weights = [ExpertWeights(*((tensor.float() * 5).to(dtype) for tensor in parts)) for parts in stored]
    there = (ExpertWeights(*(tensor.to(DEVICE) for tensor in parts)) for parts in weights)
    return PackedLayer(table, weights), TritonLayer(table.to(DEVICE), there)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("config", "experts", "num_tokens"),
    [
        pytest.param(TINY, ALL, 1, id="one-token"),
        pytest.param(TINY, ALL, 33, id="rows-of-16"),
        pytest.param(TINY, (9, 2, 4), 40, id="some-are-elsewhere"),
        pytest.param(TINY, ALL, 100, id="rows-of-32"),
        pytest.param(UNEVEN, ALL, 140, id="rows-of-64-uneven-sizes"),
        pytest.param(TINY, ALL, 550, id="rows-of-128"),
    ],
)
def test_it_agrees_with_the_loop(
    config: ModelConfig, experts: tuple[int, ...], num_tokens: int, dtype: torch.dtype
) -> None:
    loop, few = two_layers(config, experts, dtype)
    rows = torch.randn(num_tokens, config.hidden_size).to(dtype)
    ids, weights = torch.rand(num_tokens, 16).argsort(dim=1)[:, :2].contiguous(), torch.rand(num_tokens, 2)
    ids[0, 0], ids[0, 1] = 4, 11
    ids = ids.masked_fill(~torch.isin(ids, torch.tensor(experts)), -1)
    num_results = int((ids >= 0).sum())
    expected = loop(rows, ids, weights, num_results).float()
    results = few(rows.to(DEVICE), ids.to(DEVICE), weights.to(DEVICE), num_results).cpu().float()
    assert results.shape == expected.shape
    assert (results - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def test_all_rows_may_go_to_the_same_experts() -> None:
    loop, few = two_layers(TINY, ALL, torch.float32)
    rows, ids = torch.randn(70, TINY.hidden_size), torch.tensor([[15, 0]]).repeat(70, 1)
    weights = torch.rand(70, 2)
    results = few(rows.to(DEVICE), ids.to(DEVICE), weights.to(DEVICE), 140).cpu()
    assert torch.allclose(results, loop(rows, ids, weights, 140), atol=1e-4)


def test_rows_without_an_expert_at_the_end_change_nothing() -> None:
    _, few = two_layers(TINY, ALL, torch.float32)
    rows, ids = torch.randn(3, TINY.hidden_size), torch.tensor([[3, 1], [1, 7], [-1, -1]])
    rows, ids, weights = rows.to(DEVICE), ids.to(DEVICE), torch.rand(3, 2).to(DEVICE)
    assert torch.equal(few(rows, ids, weights, 6)[:4], few(rows[:2], ids[:2], weights[:2], 4))


@pytest.mark.parametrize("config", [TINY, UNEVEN], ids=["tiny", "uneven-sizes"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 5, 600])
def test_what_is_added_up_is_what_the_results_add_up_to(
    config: ModelConfig, num_tokens: int, dtype: torch.dtype
) -> None:
    loop, layer = two_layers(config, ALL, dtype)
    rows = torch.randn(num_tokens, config.hidden_size).to(dtype)
    ids, weights = torch.rand(num_tokens, 16).argsort(dim=1)[:, :2].contiguous(), torch.rand(num_tokens, 2)
    expected = add_choices(loop(rows, ids, weights, 2 * num_tokens), 2).float()
    there = layer.combined(rows.to(DEVICE), ids.to(DEVICE), weights.to(DEVICE))
    assert there.shape == rows.shape
    assert (there.cpu().float() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.skipif(DEVICE.type == "cpu", reason="torch's grouped product of many rows runs on CUDA")
@pytest.mark.parametrize("experts", [ALL, (9, 2, 4)], ids=["all", "some-are-elsewhere"])
def test_many_rows_go_through_grouped_products(experts: tuple[int, ...]) -> None:
    loop, layer = two_layers(TINY, experts, torch.bfloat16)
    rows = torch.randn(1300, TINY.hidden_size).bfloat16()
    ids, weights = torch.rand(1300, 16).argsort(dim=1)[:, :2].contiguous(), torch.rand(1300, 2)
    ids = ids.masked_fill(~torch.isin(ids, torch.tensor(experts)), -1)
    num_results = int((ids >= 0).sum())
    expected = loop(rows, ids, weights, num_results).float()
    there = layer(rows.to(DEVICE), ids.to(DEVICE), weights.to(DEVICE), num_results).cpu().float()
    assert (there - expected).norm() <= 0.01 * expected.norm()
    if experts == ALL:
        total = layer.combined(rows.to(DEVICE), ids.to(DEVICE), weights.to(DEVICE)).cpu().float()
        assert (total - expected[::2] - expected[1::2]).norm() <= 0.01 * total.norm()


@pytest.mark.parametrize("num_tokens", [1, 9, 90, 700])
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_experts_agree_with_the_loop(kind: str, num_tokens: int) -> None:
    """int8 has a scale for each group of inputs, fp8 has one scale for each output."""
    reader = DummyReader(TINY)
    sizes = TINY.hidden_size, TINY.intermediate_size
    stored = [read_expert(reader, TINY, 0, expert) for expert in ALL]
    experts = [
        QuantizedExpert(*(quantize(tensor * 5, kind, group_size(kind, sizes)) for tensor in parts))
        for parts in stored
    ]
    table = slot_table(ALL, TINY.num_experts)
    there = (
        QuantizedExpert(
            *(
                QuantizedWeight(part.values.to(DEVICE), part.scales.to(DEVICE), part.num_bits)
                for part in parts
            )
        )
        for parts in experts
    )
    loop, layer = PackedLayer(table, experts), TritonLayer(table.to(DEVICE), there)
    rows = torch.randn(num_tokens, TINY.hidden_size).to(HALF)
    ids, weights = torch.rand(num_tokens, 16).argsort(dim=1)[:, :2].contiguous(), torch.rand(num_tokens, 2)
    expected = loop(rows, ids, weights, 2 * num_tokens).float()
    results = layer(rows.to(DEVICE), ids.to(DEVICE), weights.to(DEVICE), 2 * num_tokens).cpu().float()
    assert (results - expected).norm() <= TOLERANCE[HALF] * expected.norm()
    total = layer.combined(rows.to(DEVICE), ids.to(DEVICE), weights.to(DEVICE)).cpu().float()
    assert (total - expected[::2] - expected[1::2]).norm() <= TOLERANCE[HALF] * total.norm()


def test_an_expert_that_is_taken_over_gives_the_same_bits() -> None:
    _, former = two_layers(TINY, (2, 4), HALF)
    _, fresh = two_layers(TINY, (4, 9), HALF)
    table = slot_table((4, 9), TINY.num_experts).to(DEVICE)
    other = TritonLayer(table, [former.expert(1), fresh.expert(1)])
    rows = torch.randn(6, TINY.hidden_size, device=DEVICE).to(HALF)
    ids, weights = torch.tensor([[4, 9]] * 6, device=DEVICE), torch.rand(6, 2, device=DEVICE)
    assert torch.equal(other(rows, ids, weights, 12), fresh(rows, ids, weights, 12))
