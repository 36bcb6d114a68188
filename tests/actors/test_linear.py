"""Compares the product that the CPU uses with float64."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest
import torch

from actors import linear
from actors.checkpoint.quantization import group_size
from actors.checkpoint.quantized_weight import dequantize, quantize
from actors.kernels import library
from actors.kernels.library import kernels_for
from actors.linear import make_product, padded_rows, product_name
from tests.support.tensors import random

SHAPES = [(1, 1), (16, 32), (7, 40), (300, 128), (96, 1600), (513, 257)]
MAX_ROWS = 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_equals_the_product_in_float64(
    dtype: torch.dtype, num_outputs: int, num_inputs: int, has_bias: bool
) -> None:
    weight = random(num_outputs, num_inputs).to(dtype)
    bias = random(num_outputs).to(dtype) if has_bias else None
    product = make_product(weight, bias)
    for num_rows in (1, 2, 3, 4, 5, MAX_ROWS, MAX_ROWS + 1, 50):
        x = random(num_rows, num_inputs).to(dtype)
        expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        rounding = 2 * torch.finfo(dtype).eps * (expected.abs() + 0.2 * num_inputs**0.5)
        tolerance = rounding + 2 * num_inputs * torch.finfo(torch.float32).eps
        assert ((product(x).double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(48, 64), (300, 128), (1024, 1600)])
def test_a_row_has_the_same_bits_alone_and_among_others(
    dtype: torch.dtype, num_outputs: int, num_inputs: int
) -> None:
    product = make_product(random(num_outputs, num_inputs).to(dtype))
    x = random(MAX_ROWS, num_inputs).to(dtype)
    together = product(x)
    for num_rows in range(1, MAX_ROWS):
        assert torch.equal(product(x[:num_rows]), together[:num_rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_give_a_row_the_same_bits_in_any_matrix(dtype: torch.dtype) -> None:
    if kernels_for(dtype, 2) is None:
        pytest.skip("this processor or installation has no kernels")
    product = make_product(random(300, 128).to(dtype), random(300).to(dtype))
    x = random(200, 128).to(dtype)
    together = product(x)
    for start, end in ((0, 1), (7, 9), (3, 50), (199, 200), (20, 150)):
        assert torch.equal(product(x[start:end]), together[start:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(48, 64), (300, 128), (1024, 1600)])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("by_kernels", [False, True])
def test_a_quantized_product_equals_the_product_with_the_dequantized_weights(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    num_outputs: int,
    num_inputs: int,
    has_bias: bool,
    by_kernels: bool,
) -> None:
    weight = random(num_outputs, num_inputs).to(dtype)
    bias = random(num_outputs).to(dtype) if has_bias else None
    if not by_kernels:
        monkeypatch.setattr(linear, "kernels_for", lambda *_: None)
    product = make_product(weight, bias, "int8")
    held = dequantize(quantize(weight, "int8", group_size("int8", (num_inputs,)))).double()
    x = random(MAX_ROWS + 1, num_inputs).to(dtype)
    expected = x.double() @ held.T + (0 if bias is None else bias.double())
    result = product(x)
    assert result.dtype == dtype
    rounding = 2 * torch.finfo(dtype).eps * (expected.abs() + 0.2 * num_inputs**0.5)
    # The kernels for quantized weights convert rows to 16 bits.
    assert ((result.double() - expected).abs() <= rounding + 2**-15 * num_inputs).all()
    for num_rows in (1, 5, MAX_ROWS):
        assert torch.equal(product(x[:num_rows]), result[:num_rows]) or not by_kernels


def test_inputs_that_no_group_divides_are_refused() -> None:
    with pytest.raises(ValueError, match="have 40 inputs, expected multiples of 32"):
        make_product(random(8, 40), None, "int8")


def test_threads_do_not_change_a_bit() -> None:
    product = make_product(random(1024, 256).bfloat16())
    x = random(9, 256).bfloat16()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = product(x)
        torch.set_num_threads(2)
        assert torch.equal(product(x), alone)
    finally:
        torch.set_num_threads(before)


def test_quantized_products_are_named_by_what_computes_them() -> None:
    assert product_name(torch.bfloat16, torch.device("cuda"), "fp8") == "triton fp8"
    on_cpu = product_name(torch.bfloat16, torch.device("cpu"), "int8")
    kernels = kernels_for(torch.bfloat16)
    assert on_cpu == f"{'torch' if kernels is None else kernels.name} int8"


def test_the_kernels_are_built_where_there_is_a_compiler() -> None:
    if shutil.which("cc") is None or platform.machine() != "x86_64":
        pytest.skip("no C compiler, or another processor")
    built = [path for path in Path(library.__file__).parent.iterdir() if path.suffix == ".so"]
    assert built, "install the package again: pip install -e ."


def test_rows_are_padded_to_few_different_numbers() -> None:
    padded = [padded_rows(num_rows) for num_rows in range(1, 2049)]
    assert all(0 <= after - before < max(4, before) for before, after in enumerate(padded, start=1))
    assert padded == sorted(padded)
    assert len(set(padded)) < 60
