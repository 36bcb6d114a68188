"""Tests that the harness injects the planned faults, and none that a service cannot survive."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from tests.support.fault_plan import Fault, is_survivable, random_plan
from tests.support.faults import Injected, _share_out
from tests.support.streams import Choice, Stream, catalogue


def view(experts: Sequence[tuple[int, ...]], num_dense: int = 2, lost: str = "") -> dict[str, Any]:
    names = [("expert", index, held) for index, held in enumerate(experts)]
    names += [("dense", index, ()) for index in range(num_dense)]
    actors: list[dict[str, Any]] = [
        {"name": f"phimoe-{kind}-{index}", "kind": kind, "experts": list(held)} for kind, index, held in names
    ]
    actors.append({"name": "phimoe-supervisor", "kind": "supervisor", "experts": []})
    return {"actors": [{**a, "state": "lost" if a["name"] == lost else "ready"} for a in actors]}


TWICE = [(0, 1), (1, 2), (2, 0)]
FIRST = Fault(kind="expert", index=0, way="kill")


def test_a_plan_is_the_same_for_the_same_seed_and_has_every_sort_of_fault() -> None:
    plan = random_plan(3, 300, 4, 2)
    assert plan == random_plan(3, 300, 4, 2) != random_plan(4, 300, 4, 2)
    labels = {fault.label for fault in plan}
    assert labels == {
        f"{kind} {way}" for kind in ("expert", "dense") for way in ("kill", "hang", "pause")
    } | {
        "supervisor kill",
        "supervisor pause",
    }
    assert not any(a.is_joint and b.is_joint for a, b in pairwise(plan))


@pytest.mark.parametrize(
    ("state", "away", "fault", "expected"),
    [
        pytest.param(view(TWICE), set(), FIRST, True, id="all there"),
        pytest.param(view(TWICE), {"phimoe-expert-1"}, FIRST, False, id="the last copy"),
        pytest.param(view(TWICE, lost="phimoe-expert-2"), set(), FIRST, False, id="the last copy, as told"),
        pytest.param(view(TWICE), {"phimoe-expert-0"}, FIRST, False, id="already away"),
        pytest.param(view([(0,), (1,)]), set(), FIRST, False, id="no replica"),
        pytest.param(
            view(TWICE), {"phimoe-dense-1"}, Fault(kind="dense", index=0, way="hang"), False, id="last dense"
        ),
        pytest.param(
            view(TWICE),
            {"phimoe-dense-1"},
            Fault(kind="supervisor", index=0, way="kill"),
            True,
            id="supervisor",
        ),
    ],
)
def test_only_what_leaves_a_copy_of_everything_is_survivable(
    state: dict[str, Any], away: set[str], fault: Fault, expected: bool
) -> None:
    assert is_survivable(state, away, fault, needs_all=False) is expected


def test_without_replicas_everybody_else_has_to_be_there() -> None:
    state = view([(0,), (1,)])
    assert is_survivable(state, set(), FIRST, needs_all=True)
    assert not is_survivable(state, {"phimoe-dense-1"}, FIRST, needs_all=True)


def test_any_difference_from_the_truth_is_seen() -> None:
    def stream(**changes: Any) -> Stream:
        fields = {"token_ids": [1, 2], "text": "ab", "finish": ("length", None), "logprobs": [-1.0, -2.0]}
        return Stream(number=0, choices={0: Choice(**{**fields, **changes})})

    assert stream().difference(stream(logprobs=[-1.0, -2.0000001])) is None
    wrong: list[dict[str, Any]] = [
        {"token_ids": [1, 3]},
        {"token_ids": [1]},
        {"token_ids": [1, 2, 2]},
        {"text": "aB"},
        {"finish": ("stop", "b")},
        {"logprobs": [-1.0]},
        {"logprobs": [-1.0, -2.1]},
    ]
    assert all(stream(**changes).difference(stream()) is not None for changes in wrong)
    assert Stream(number=0).difference(stream()) is not None


def test_a_gap_belongs_to_the_first_fault_in_it_or_else_to_the_last_one_before() -> None:
    first, second = (Injected(fault=FIRST, at=at, pid=1) for at in (10.0, 11.9))
    stream = Stream(number=0, arrivals={0: [9.0, 9.5, 9.9, 12.0, 12.3, 12.4]})
    _share_out([stream], [first, second])
    assert first.pauses == [pytest.approx(2.1)] and second.pauses == [pytest.approx(0.3)]
    assert first.waits == second.waits == []


def test_the_catalogue_has_every_sort_of_request() -> None:
    bodies = catalogue(48)
    assert any(body["temperature"] == 0 for body in bodies) and any("seed" in body for body in bodies)
    assert any(body.get("n", 1) > 1 for body in bodies) and any("stop" in body for body in bodies)
    assert any("logprobs" in body for body in bodies)
    assert any(len(body["prompt"]) < 128 < len(body["prompt"]) + body["max_tokens"] for body in bodies)
