"""Weights of bfloat16 that are coded in 12 bits per number.

Products with the rows of the identity matrix show the exact bits of every number of a weight.
"""

from __future__ import annotations

import pytest
import torch

from actors.kernels.library import Kernels, kernels_for, pack
from actors.linear import make_product

_UPPER_BITS = 7
"""Bits of a number's exponent that are in its upper byte."""


@pytest.fixture
def kernels() -> Kernels:
    found = kernels_for(torch.bfloat16)
    if found is None:
        pytest.skip("this processor or installation has no kernels")
    return found


def numbers(upper: torch.Tensor, seed: int) -> torch.Tensor:
    """bfloat16 numbers with the given upper bytes, random signs and random lower bytes.

    The exponent is changed where a number would not be normal and finite, since products do not show such
    numbers exactly.
    """
    dice = torch.Generator().manual_seed(seed)
    lower = torch.randint(256, upper.shape, generator=dice)
    sign = torch.randint(2, upper.shape, generator=dice)
    bits = sign << 15 | upper << 8 | lower
    exponent = bits >> 7 & 0xFF
    bits[exponent == 0] |= 0x80
    bits[exponent == 0xFF] &= ~0x80
    return bits.to(torch.uint16).view(torch.bfloat16)


def share_of_memory(kernels: Kernels, weight: torch.Tensor) -> float:
    """The memory of the packed weight, relative to its uncoded numbers with absent outputs included."""
    num_outputs, num_inputs = weight.shape
    num_held = -(-num_outputs // kernels.block_outputs) * kernels.block_outputs * num_inputs
    return pack(kernels, weight).numel() / (2 * num_held)


def is_exact(weight: torch.Tensor) -> bool:
    shown = make_product(weight)(torch.eye(weight.shape[1], dtype=torch.bfloat16))
    return torch.equal(shown.T, weight)


@pytest.mark.parametrize("first", range(0, 1 << _UPPER_BITS, 8))
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(64, 256), (100, 130), (7, 2)])
def test_eight_upper_bytes_are_coded(kernels: Kernels, first: int, num_outputs: int, num_inputs: int) -> None:
    upper = torch.randint(
        first, first + 8, (num_outputs, num_inputs), generator=torch.Generator().manual_seed(first)
    )
    weight = numbers(upper, first)
    assert is_exact(weight)
    if num_inputs >= 256:
        assert share_of_memory(kernels, weight) < 0.79


@pytest.mark.parametrize("num_inputs", [2, 126, 128, 130, 512])
def test_rows_with_other_upper_bytes_stay_as_they_are(kernels: Kernels, num_inputs: int) -> None:
    dice = torch.Generator().manual_seed(num_inputs)
    upper = torch.randint(56, 64, (130, num_inputs), generator=dice)
    for probability in (0.001, 0.01, 1.0):
        is_other = torch.rand(upper.shape, generator=dice) < probability
        weight = numbers(
            torch.where(is_other, torch.randint(128, upper.shape, generator=dice), upper), num_inputs
        )
        assert is_exact(weight)
    # The last weight has no coded row, and only the heads of the blocks are added to its numbers.
    assert num_inputs < 512 or 1 <= share_of_memory(kernels, weight) < 1.02


def test_normally_distributed_weights_take_three_quarters(kernels: Kernels) -> None:
    weight = (torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    assert is_exact(weight)
    assert 0.75 < share_of_memory(kernels, weight) < 0.76


def test_zeros_and_numbers_beside_them(kernels: Kernels) -> None:
    weight = torch.zeros(64, 64, dtype=torch.bfloat16)
    assert is_exact(weight)
    weight[::3, ::5] = -1.5
    assert is_exact(weight)
