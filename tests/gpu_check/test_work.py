"""Compares the limits with numbers that can be calculated by hand."""

from __future__ import annotations

import dataclasses

import pytest

from actors.checkpoint.dummy.presets import preset_config
from actors.gpu_check.work import Device, Work, step_work

FULL = preset_config("phi-3.5-moe")
BF16 = 2
H200 = Device(bytes_per_second=4.3e12, flops=790e12)


def test_a_single_token_reads_the_active_weights() -> None:
    """With 6.6B active parameters in bf16 a token takes 3.1 ms at 4.3 TB/s."""
    work = step_work(FULL, BF16, BF16, [(0, 1)], 1, 2 * FULL.num_layers)
    assert work.num_bytes == pytest.approx(13.0e9, rel=0.02)
    assert work.limit_seconds(H200) == pytest.approx(3.1e-3, rel=0.03)


def test_all_experts_are_nearly_the_whole_model() -> None:
    work = step_work(FULL, BF16, BF16, [(0, 1)] * 64, 64, 16 * FULL.num_layers)
    assert work.num_bytes == pytest.approx(83.5e9, rel=0.01)


def test_a_long_context_adds_its_keys_and_values_to_a_step() -> None:
    near, far = (step_work(FULL, BF16, BF16, [(n, n + 1)], 1, 2) for n in (0, 1000))
    assert far.num_bytes - near.num_bytes == 1000 * 32 * 2 * 1024 * BF16
    assert far.flops - near.flops == 1000 * 32 * 4 * 4096


def test_a_prompt_is_bound_by_its_products() -> None:
    work = step_work(FULL, BF16, BF16, [(0, 2048)], 1, 16 * FULL.num_layers)
    assert work.flops == pytest.approx(2048 * 2 * 6.44e9, rel=0.05)
    assert work.limit_seconds(H200) == work.flops / H200.flops


def test_a_window_bounds_what_is_seen() -> None:
    windowed = dataclasses.replace(FULL, sliding_window=100)
    step, same = (step_work(config, BF16, BF16, [(999, 1000)], 1, 2) for config in (windowed, FULL))
    assert same.num_bytes - step.num_bytes == 900 * 32 * 2 * 1024 * BF16
    assert same.flops - step.flops == 900 * 32 * 4 * 4096


def test_work_adds_up() -> None:
    assert Work(num_bytes=1, flops=2) + Work(num_bytes=3, flops=5) == Work(num_bytes=4, flops=7)


def test_experts_of_fewer_bytes_are_read_in_less_time() -> None:
    whole, half = (step_work(FULL, BF16, size, [(0, 1)], 1, 64) for size in (BF16, 1))
    expert = 3 * FULL.hidden_size * FULL.intermediate_size
    assert whole.num_bytes - half.num_bytes == 64 * expert
    assert whole.flops == half.flops
