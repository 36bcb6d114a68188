"""Tests the results of a step's samples: tokens, finish reasons and messages to connections."""

from __future__ import annotations

from typing import Any

import pytest

from actors.dense.sampling.sampler import Sample
from actors.dense.scheduling.scheduler import Chunk
from actors.dense.scheduling.sequence import Sequence
from actors.dense.step_results import EVERYBODY, StepResults
from actors.errors import ExpertFailedError, NotReadyError
from actors.protocol.messages import Load, SamplingParams, StepOutput

END_ID = 2
LOAD = Load(running=1, waiting=0, free_blocks=3, total_blocks=4)


class Told:
    """The results of steps, and all that was told of them."""

    def __init__(self) -> None:
        self.outputs: list[tuple[int, StepOutput]] = []
        self.results = StepResults(lambda *output: self.outputs.append(output), [END_ID])

    def append(
        self, sequence: Sequence, drafts: tuple[int, ...], *drawn: int
    ) -> tuple[list[int], str | None]:
        end = sequence.num_tokens
        chunk = Chunk(sequence, end - 1, end, drafts)
        return self.results.append(chunk, [Sample(token_id, None) for token_id in drawn])


def new_sequence(owner: int = 0, **params: Any) -> Sequence:
    return Sequence(
        sequence_id="a",
        owner=owner,
        prompt_ids=[5, 6],
        output_ids=[],
        params=SamplingParams(**({"max_tokens": 8, "seed": 0} | params)),
        arrival=0,
    )


@pytest.mark.parametrize(
    ("drafts", "drawn", "kept"),
    [
        pytest.param((), (7,), [7], id="no-drafts"),
        pytest.param((7, 8), (7, 8, 9), [7, 8, 9], id="all-right"),
        pytest.param((7, 8), (7, 1, 9), [7, 1], id="second-wrong"),
        pytest.param((7, 8), (1, 8, 9), [1], id="first-wrong"),
    ],
)
def test_tokens_count_up_to_the_first_wrong_draft(
    drafts: tuple[int, ...], drawn: tuple[int, ...], kept: list[int]
) -> None:
    told, sequence = Told(), new_sequence()
    sequence.num_computed = 2
    assert told.append(sequence, drafts, *drawn) == (kept, None)
    assert sequence.output_ids == kept
    assert sequence.num_computed == 2 + len(kept) - 1
    assert told.results.num_generated_tokens == len(kept)


@pytest.mark.parametrize(
    ("params", "drawn", "reason"),
    [
        pytest.param({}, END_ID, "stop", id="end"),
        pytest.param({"ignore_eos": True}, END_ID, None, id="end-ignored"),
        pytest.param({"stop_token_ids": (7,)}, 7, "stop", id="stop-token"),
        pytest.param({"max_tokens": 1}, 7, "length", id="last-token"),
        pytest.param({"max_tokens": 1}, END_ID, "stop", id="end-as-last-token"),
    ],
)
def test_a_sequence_ends_for_a_reason(params: dict[str, Any], drawn: int, reason: str | None) -> None:
    told = Told()
    assert told.append(new_sequence(**params), (), drawn) == ([drawn], reason)
    told.results.tell(LOAD, False)
    ((_, output),) = told.outputs
    assert output.deltas[0].finish_reason == reason
    assert output.deltas[0].stop_token_id == (drawn if reason == "stop" else None)


def test_a_sequence_that_wants_no_tokens_gets_none() -> None:
    told = Told()
    assert told.append(new_sequence(max_tokens=0), (), 7) == ([], "length")


def test_each_connection_hears_of_its_own_sequences_once() -> None:
    told = Told()
    assert not told.results.has_news(False)
    told.append(new_sequence(owner=3), (), 7)
    told.append(new_sequence(owner=4), (), 8)
    assert told.results.has_news(False)
    told.results.tell(LOAD, False)
    assert [(owner, output.deltas[0].token_ids) for owner, output in told.outputs] == [(3, [7]), (4, [8])]
    assert not told.results.has_news(False)
    told.results.tell(LOAD, False)
    assert len(told.outputs) == 2


def test_a_change_of_readiness_is_told_to_everybody_and_first() -> None:
    told = Told()
    assert told.results.has_news(True)
    told.append(new_sequence(owner=3), (), 7)
    told.results.tell(LOAD, True)
    assert [(owner, output.is_ready) for owner, output in told.outputs] == [(EVERYBODY, True), (3, True)]
    assert not told.results.has_news(True) and told.results.has_news(False)


@pytest.mark.parametrize(
    ("error", "is_worth_retrying"),
    [(NotReadyError(2.0), True), (ExpertFailedError("expert-0", 0, "ValueError: poison"), False)],
)
def test_an_error_says_whether_it_is_worth_another_try(error: Exception, is_worth_retrying: bool) -> None:
    told = Told()
    told.results.append_error(new_sequence(), error)
    told.results.tell(LOAD, False)
    delta = told.outputs[0][1].deltas[0]
    assert delta.finish_reason == "error" and delta.error == f"{type(error).__name__}: {error}"
    assert delta.is_worth_retrying is is_worth_retrying
