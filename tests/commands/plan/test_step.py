"""Tests the cost of a step against calculations by hand, and what must hold for all numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.checkpoint.dummy.presets import preset_config
from cluster.commands.plan.hardware import NAMES, Hardware, hardware
from cluster.commands.plan.shape import Shape, model_shape
from cluster.commands.plan.step import Layout, step_cost

PHI = model_shape(preset_config("phi-3.5-moe"))
MID = model_shape(preset_config("mid"))
SMALL = Shape(
    num_layers=2,
    hidden_size=4,
    num_experts=16,
    num_experts_per_token=2,
    item_bytes=2,
    is_bf16=True,
    dense_layer_weights=100,
    expert_weights=50,
    head_weights=40,
    dense_weights=280,
    kv_size=2,
    sliding_window=None,
    max_position_embeddings=1000,
)
PLAIN = Hardware(
    name="plain",
    kind="gpu",
    bandwidth=1000.0,
    flops=10_000.0,
    memory_bytes=1e6,
    link_bandwidth=100.0,
    link_latency_seconds=0.5,
)
"""1,000 bytes, 10,000 operations and 100 bytes of rows per second."""

layouts = st.builds(
    lambda dense, experts, replicas, micro: Layout(
        dense_actors=dense,
        expert_actors=experts,
        expert_replicas=min(replicas, max(1, experts)),
        micro_batches=micro if experts else 1,
    ),
    st.integers(1, 8), st.integers(0, 16), st.integers(1, 3), st.integers(1, 4),
)  # fmt: skip


def test_shapes_are_those_of_the_checkpoint() -> None:
    total = PHI.dense_weights + 16 * PHI.num_layers * PHI.expert_weights
    assert total == pytest.approx(41.9e9, rel=0.002)
    assert PHI.expert_bytes() == 157_286_400
    assert PHI.kv_bytes_per_token == 131_072
    assert MID.dense_weights + 16 * 8 * MID.expert_weights == pytest.approx(716e6, rel=0.002)


def test_one_sequence_over_two_expert_actors_by_hand() -> None:
    layout = Layout(dense_actors=1, expert_actors=2)
    cost = step_cost(SMALL, PLAIN, layout, 1, 10)
    # Dense: 100 weights and 10 positions of 2 * 2 features, 2 bytes each, 280 bytes; 2 * 100 + 4 * 4 * 10
    # operations.
    assert cost.dense_seconds == pytest.approx(0.28)
    # Two of 16 experts meet on one of two actors with probability 7 / 15: the busiest reads 1 + 7 / 15 of 100
    # bytes.
    assert cost.expert_seconds == pytest.approx(0.1 * 22 / 15)
    # Two rows of 4 features.
    assert cost.link_seconds == pytest.approx(0.5 + 16 / 100)
    assert cost.head_seconds == pytest.approx(0.08)
    assert cost.seconds == pytest.approx(2 * (0.28 + 0.1 * 22 / 15 + 2 * 0.66) + 0.08)
    assert cost.bound_by == "link latency"


def test_coded_weights_are_fewer_bytes_but_keys_and_values_are_not() -> None:
    coded = replace(PLAIN, bf16_weight_share=0.75)
    cost = step_cost(SMALL, coded, Layout(dense_actors=1, expert_actors=2), 1, 10)
    assert cost.dense_seconds == pytest.approx(0.75 * 0.2 + 0.08)
    assert cost.expert_seconds == pytest.approx(0.75 * 0.1 * 22 / 15)
    assert cost.head_seconds == pytest.approx(0.75 * 0.08)
    plain = replace(SMALL, is_bf16=False)
    layout = Layout(dense_actors=1, expert_actors=0)
    assert step_cost(plain, coded, layout, 1, 10) == step_cost(plain, PLAIN, layout, 1, 10)


def test_all_experts_beside_the_dense_part_by_hand() -> None:
    cost = step_cost(SMALL, PLAIN, Layout(dense_actors=3, expert_actors=0), 1000, 10)
    # Computing: per row 200 + 160 operations, and 2 * 2 * 50 of experts.
    assert cost.dense_seconds == pytest.approx(max((100 + 40 * 1000) * 2 / 1000, 360 * 1000 / 10_000))
    assert cost.expert_seconds == pytest.approx(2 * 1000 * 2 * 50 / 10_000)
    assert cost.seconds == pytest.approx(2 * (cost.dense_seconds + cost.expert_seconds) + 8.0)


def test_enough_micro_batches_hide_the_exchange() -> None:
    """MegaScale-Infer, equation 5: (Ta + Te + 2 Tc) + Tf (m L - 1) where m Tf >= Ta + Te + 2 Tc."""
    layout = Layout(dense_actors=2, expert_actors=4, micro_batches=3)
    fast = replace(PLAIN, link_bandwidth=1e9, link_latency_seconds=1e-4)
    cost = step_cost(SMALL, fast, layout, 90, 10)
    way = cost.dense_seconds + cost.expert_seconds + 2 * cost.link_seconds
    slowest = max(cost.dense_seconds, cost.expert_seconds)
    assert 3 * slowest >= way
    assert cost.seconds == pytest.approx(way + slowest * (3 * 2 - 1) + 3 * cost.head_seconds)


def test_few_micro_batches_wait_for_the_exchange() -> None:
    cost = step_cost(SMALL, PLAIN, Layout(dense_actors=1, expert_actors=2, micro_batches=2), 2, 10)
    way = cost.dense_seconds + cost.expert_seconds + 2 * cost.link_seconds
    slowest = max(cost.dense_seconds, cost.expert_seconds)
    assert cost.seconds == pytest.approx(2 * way + slowest + 2 * cost.head_seconds)


def test_a_host_reads_attention_head_and_touched_experts_once_a_step() -> None:
    """The memory limit of the 716M preset at 36 GB/s: 136 tokens/s at batch 1, 790 at batch 32."""
    ideal = replace(
        hardware("cpu", bandwidth=36e9, flops=1e18, step_overhead_seconds=0.0, bf16_weight_share=1.0),
        core_bandwidth_share=1.0,
    )
    layout = Layout(dense_actors=1, expert_actors=0)
    rates = [batch / step_cost(MID, ideal, layout, batch, 0).seconds for batch in (1, 4, 16, 32)]
    assert rates == pytest.approx([136, 230, 473, 850], rel=0.01)


def test_processes_of_a_host_share_its_bandwidth() -> None:
    cpu = hardware("cpu", flops=1e18, core_bandwidth_share=1.0, link_latency_seconds=0.0, link_bandwidth=1e18)
    alone, many = (
        step_cost(MID, cpu, Layout(dense_actors=1, expert_actors=count), 32, 80).seconds for count in (0, 16)
    )
    assert many == pytest.approx(alone)


@given(st.sampled_from(NAMES), layouts, st.integers(1, 2000), st.integers(0, 100_000), st.floats(1, 10))
def test_better_hardware_is_never_slower(
    name: str, layout: Layout, batch: int, context: int, factor: float
) -> None:
    machine = hardware(name)
    if machine.kind == "cpu":
        layout = replace(layout, dense_actors=1, micro_batches=1)
    before = step_cost(PHI, machine, layout, batch, context).seconds
    for field in ("bandwidth", "flops", "link_bandwidth"):
        better = replace(machine, **{field: getattr(machine, field) * factor})
        assert step_cost(PHI, better, layout, batch, context).seconds <= before * (1 + 1e-12)


@given(st.sampled_from(NAMES), layouts, st.integers(1, 2000), st.integers(1, 100_000))
def test_a_larger_batch_or_context_is_never_faster(
    name: str, layout: Layout, batch: int, context: int
) -> None:
    machine = hardware(name)
    if machine.kind == "cpu":
        layout = replace(layout, dense_actors=1, micro_batches=1)
    before = step_cost(PHI, machine, layout, batch, context).seconds
    assert step_cost(PHI, machine, layout, batch + 1, context).seconds >= before * (1 - 1e-12)
    assert step_cost(PHI, machine, layout, batch, context + 1).seconds >= before * (1 - 1e-12)


@given(st.sampled_from(NAMES), layouts, st.integers(1, 500))
def test_no_step_beats_the_bytes_that_it_must_read(name: str, layout: Layout, batch: int) -> None:
    machine = hardware(name)
    if machine.kind == "cpu":
        layout = replace(layout, dense_actors=1, micro_batches=1)
    head_and_attention = (PHI.num_layers * PHI.dense_layer_weights + PHI.head_weights) * 2
    cost = step_cost(PHI, machine, layout, batch, 1000)
    assert cost.seconds >= head_and_attention / machine.bandwidth
