"""Quantized experts: rounding, kernels against float64, and the same bits of a row beside any other rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from actors.checkpoint.quantized_weight import (
    QuantizedExpert,
    dequantize,
    from_words,
    quantize,
    to_words,
)
from actors.expert.experts import slot_table
from actors.expert.layers.cpu_kernels import GroupedLinearLayer
from actors.expert.layers.onednn import PackedLayer
from tests.support.tensors import random

HIDDEN, WIDTH, HELD = 96, 160, (1, 4, 5, 9)
KINDS = [pytest.param("int8", 32), pytest.param("int4", 32), pytest.param("int8", 0), pytest.param("int4", 0)]
"""The kind, and how many inputs share a scale; 0 stands for all inputs."""


def expert(number: int, kind: str, size: int) -> QuantizedExpert:
    w1, w3, w2 = (
        random(outputs, inputs + number)[:, number:] / 8
        for outputs, inputs in ((WIDTH, HIDDEN), (WIDTH + 1, HIDDEN), (HIDDEN, WIDTH))
    )
    return QuantizedExpert(*(quantize(w, kind, size or w.shape[1]) for w in (w1, w3[1:], w2)))


def experts(kind: str, size: int) -> list[QuantizedExpert]:
    return [expert(number, kind, size) for number in HELD]


def layer(dtype: torch.dtype, held: list[QuantizedExpert]) -> GroupedLinearLayer:
    if not GroupedLinearLayer.suits(dtype, HIDDEN, WIDTH, is_quantized=True):
        pytest.skip("this processor or installation has no kernels")
    return GroupedLinearLayer(slot_table(HELD, 16), held, dtype)


def routed(num_tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    rows = random(num_tokens, HIDDEN).to(dtype)
    choice = torch.randint(0, 5, (num_tokens, 2), generator=torch.Generator().manual_seed(num_tokens))
    expert_ids = torch.tensor([-1, *HELD])[choice]
    expert_ids[0, 0] = HELD[0]
    return rows, expert_ids, random(num_tokens, 2).abs(), int((expert_ids >= 0).sum())


def in_float64(
    held: list[QuantizedExpert], rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    results = []
    for row, ids, scales in zip(rows.double(), expert_ids.tolist(), weights.double(), strict=True):
        for number, scale in zip(ids, scales, strict=True):
            if number >= 0:
                w1, w3, w2 = (dequantize(weight).double() for weight in held[HELD.index(number)])
                results.append(w2 @ (F.silu(w1 @ row) * (w3 @ row)) * scale)
    return torch.stack(results)


@pytest.mark.parametrize(("kind", "size"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 3, 64])
def test_the_kernels_equal_float64(kind: str, size: int, dtype: torch.dtype, num_tokens: int) -> None:
    held = experts(kind, size)
    rows, expert_ids, weights, num_results = routed(num_tokens, dtype)
    found = layer(dtype, held)(rows, expert_ids, weights, num_results).double()
    expected = in_float64(held, rows, expert_ids, weights)
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < (3e-4 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(("kind", "size"), [*KINDS, pytest.param("fp8", 32), pytest.param("fp8", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loop_of_products_equals_float64(kind: str, size: int, dtype: torch.dtype) -> None:
    held = experts(kind, size)
    rows, expert_ids, weights, num_results = routed(9, dtype)
    found = PackedLayer(slot_table(HELD, 16), held)(rows, expert_ids, weights, num_results).double()
    expected = in_float64(held, rows, expert_ids, weights)
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(("kind", "size"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_the_same_bits_alone_in_a_batch_and_with_threads(
    kind: str, size: int, dtype: torch.dtype
) -> None:
    compute = layer(dtype, experts(kind, size))
    rows, expert_ids, weights, num_results = routed(80, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = compute(rows, expert_ids, weights, num_results)
        torch.set_num_threads(1)
        alone = []
        for start, end in ((0, 1), (1, 3), (3, 10), (10, 47), (47, 80)):
            ids = expert_ids[start:end]
            if count := int((ids >= 0).sum()):
                alone.append(compute(rows[start:end], ids, weights[start:end], count))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float32])
def test_scales_of_either_dtype_are_read_as_they_are(scales: torch.dtype) -> None:
    held = [
        QuantizedExpert(*(w._replace(scales=w.scales.to(scales)) for w in one)) for one in experts("int8", 32)
    ]
    rows, expert_ids, weights, num_results = routed(5, torch.float32)
    plain = layer(torch.float32, experts("int8", 32))(rows, expert_ids, weights, num_results)
    assert torch.equal(layer(torch.float32, held)(rows, expert_ids, weights, num_results), plain)


def test_scales_of_mixed_dtypes_are_read_within_an_expert_and_refused_across_experts() -> None:
    held = experts("int8", 32)
    down = [one._replace(w2=one.w2._replace(scales=one.w2.scales.float())) for one in held]
    rows, expert_ids, weights, num_results = routed(5, torch.float32)
    plain = layer(torch.float32, held)(rows, expert_ids, weights, num_results)
    assert torch.equal(layer(torch.float32, down)(rows, expert_ids, weights, num_results), plain)
    with pytest.raises(ValueError, match="scales of bfloat16 and of float32, expected one dtype"):
        layer(torch.float32, [down[0], *held[1:]])


def test_a_row_with_large_and_small_values_keeps_both() -> None:
    held = experts("int8", 32)
    rows, expert_ids, weights, num_results = routed(4, torch.float32)
    rows[:, 0] = 300.0
    rows[:, 40:] *= 1e-6
    found = layer(torch.float32, held)(rows, expert_ids, weights, num_results).double()
    expected = in_float64(held, rows, expert_ids, weights)
    assert (found - expected).abs().max() < 3e-4 * expected.abs().max()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_none_and_reaches_no_other_row(value: float) -> None:
    compute = layer(torch.bfloat16, experts("int8", 32))
    rows, _, weights, _ = routed(3, torch.bfloat16)
    expert_ids = torch.tensor([[1, 4]] * 3)
    clean = compute(rows, expert_ids, weights, 6)
    rows[1, 7] = value
    found = compute(rows, expert_ids, weights, 6)
    assert found[2:4].isnan().all()
    assert torch.equal(found[[0, 1, 4, 5]], clean[[0, 1, 4, 5]])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_value_is_rounded_to_the_nearest_multiple_of_its_scale(kind: str, scale: float) -> None:
    weight = random(5, 96) * scale
    weight[2, 32:64] = 0
    quantized = quantize(weight, kind, 32)
    steps = quantized.scales.float().abs().repeat_interleave(32, dim=1)
    # A value opposite in sign to the largest may lie beyond the highest value of int4, which is 7.
    limit = 0.51 if kind == "int8" else 1.05
    assert ((dequantize(quantized) - weight).abs() <= limit * steps).all()
    assert quantized.values.amax() <= (127 if kind == "int8" else 7)
    assert quantized.values.amin() >= (-127 if kind == "int8" else -8)
    again = quantize(dequantize(quantized), kind, 32)
    torch.testing.assert_close(dequantize(again), dequantize(quantized), rtol=1e-2, atol=0)


def test_more_bits_and_smaller_groups_lose_less() -> None:
    weight = random(64, 256)

    def error(kind: str, size: int) -> float:
        return float((dequantize(quantize(weight, kind, size)) - weight).norm() / weight.norm())

    assert error("int8", 32) < error("int8", 64) < error("int8", 256) < 0.01
    assert 0.03 < error("int4", 32) < error("int4", 64) < 0.11


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("num_inputs", [1, 7, 32, 100])
def test_words_hold_every_value(num_bits: int, num_inputs: int) -> None:
    low = -(1 << (num_bits - 1))
    values = torch.randint(
        low, -low, (3, num_inputs), dtype=torch.int8, generator=torch.Generator().manual_seed(num_inputs)
    )
    words = to_words(values, num_bits)
    assert words.shape == (3, -(-num_inputs * num_bits // 32))
    assert torch.equal(from_words(words, num_bits, num_inputs), values)


def test_words_are_those_of_compressed_tensors() -> None:
    values = torch.tensor([[-8, -7, 0, 7, 1, 2, 3, -1]], dtype=torch.int8)
    assert to_words(values, 4).tolist() == [[0x7BA9F810]]
    assert to_words(torch.tensor([[-128, 0, 1, 127]], dtype=torch.int8), 8).tolist() == [
        [0xFF818000 - (1 << 32)]
    ]
