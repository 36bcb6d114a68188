"""32 streams run while processes are killed and stopped at random: none fails or gets a wrong token.

.venv/bin/python -m pytest tests/end_to_end/test_soak.py              ten faults
.venv/bin/python -m pytest -m slow tests/end_to_end/test_soak.py      two hundred, and a run without replicas
.venv/bin/python -m tests.support.faults --faults 200 --json FILE     the same, with other plans
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.end_to_end.running import serving
from tests.support.fault_plan import Fault, random_plan
from tests.support.faults import Outcome, disturb, flags, percentile, summary

NUM_FAULTS = 200
MARGIN = 3.0
"""A factor by which asserted figures may be exceeded: the machine is shared, and its pauses count too."""

SHORT_PLAN = [
    Fault(kind="expert", index=0, way="kill"),
    Fault(kind="dense", index=0, way="kill"),
    Fault(kind="expert", index=1, way="hang"),
    Fault(kind="supervisor", index=0, way="kill"),
    Fault(kind="expert", index=2, way="kill", is_joint=True),
    Fault(kind="dense", index=1, way="hang"),
    Fault(kind="expert", index=3, way="pause", pause_seconds=0.4),
    Fault(kind="supervisor", index=0, way="pause", pause_seconds=0.5),
    Fault(kind="dense", index=0, way="pause", pause_seconds=0.4),
    Fault(kind="expert", index=1, way="kill"),
]


def check(outcome: Outcome, num_faults: int) -> None:
    print(summary(outcome))
    assert not outcome.failed and not outcome.wrong, summary(outcome)
    assert outcome.left_over is None
    assert len(outcome.injected) >= num_faults
    assert all(item.back_after is not None for item in outcome.injected)


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_ten_faults_fail_no_stream_and_change_no_token(tmp_path: Path) -> None:
    with serving(tmp_path, *flags(2)) as service:
        outcome = asyncio.run(disturb(service, SHORT_PLAN, undisturbed_seconds=2.0))
    check(outcome, len(SHORT_PLAN) - 1)  # The joint fault does not happen while a replica is still away.


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_two_hundred_random_faults_fail_no_stream_and_pause_it_shortly(tmp_path: Path) -> None:
    plan = random_plan(1, NUM_FAULTS * 5 // 4, 4, 2)
    with serving(tmp_path, *flags(2)) as service:
        outcome = asyncio.run(disturb(service, plan))
    check(outcome, NUM_FAULTS)
    for kind in ("expert", "dense", "supervisor"):
        pauses = outcome.pauses(kind)
        own = outcome.undisturbed
        assert percentile(pauses, 0.5) < max(0.3, MARGIN * percentile(own, 0.5)), summary(outcome)
        assert percentile(pauses, 0.99) < MARGIN * max(1.0, percentile(own, 0.99)), summary(outcome)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_without_replicas_a_killed_expert_actor_pauses_streams_until_it_is_back(tmp_path: Path) -> None:
    plan = [fault for fault in random_plan(2, 60, 4, 2) if not fault.is_joint]
    with serving(tmp_path, *flags(1)) as service:
        outcome = asyncio.run(disturb(service, plan, needs_all=True))
    check(outcome, len(plan))
    killed = [
        pause for item in outcome.injected if item.fault.label == "expert kill" for pause in item.pauses
    ]
    assert percentile(killed, 0.5) < 5.0, summary(outcome)
