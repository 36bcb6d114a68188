"""Compares the predicted time of prompts on a host with measurements."""

from __future__ import annotations

import pytest

from actors.checkpoint.dummy.presets import preset_config
from cluster.commands.plan.hardware import hardware
from cluster.commands.plan.prefill import host_prefill_seconds
from cluster.commands.plan.shape import model_shape
from cluster.commands.plan.step import Layout

MID = model_shape(preset_config("mid"))


@pytest.mark.parametrize(("prompt_tokens", "measured"), [(1024, 1340), (4096, 1020)])
def test_a_prompts_rate_is_near_the_measured_one(prompt_tokens: int, measured: float) -> None:
    layout = Layout(dense_actors=1, expert_actors=2)
    predicted = 1 / host_prefill_seconds(MID, hardware("cpu"), layout, prompt_tokens)
    assert 0.75 < predicted / measured < 1.25


def test_an_exchange_and_a_longer_prompt_cost_something() -> None:
    cpu, apart, together = (
        hardware("cpu"),
        Layout(dense_actors=1, expert_actors=2),
        Layout(dense_actors=1, expert_actors=0),
    )
    assert host_prefill_seconds(MID, cpu, apart, 512) > host_prefill_seconds(MID, cpu, together, 512)
    assert host_prefill_seconds(MID, cpu, apart, 8192) > 1.5 * host_prefill_seconds(MID, cpu, apart, 512)
