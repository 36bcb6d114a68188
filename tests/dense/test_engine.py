"""The engine around the model: ends, cancellation, failed exchanges and failed steps."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from actors.dense.engine import EVERYBODY
from actors.errors import ExpertFailedError, LinkError
from actors.exchange.interface import Exchange, Handle
from actors.messages import Cancel, SamplingParams
from tests.dense.local_engine import LocalEngine, greedy
from tests.dense.test_exact import prompt


class FailingExchange:
    """The real exchange, but for one dispatch that raises."""

    def __init__(self, inner: Exchange, failing_dispatch: int, error: Exception) -> None:
        self.inner = inner
        self.countdown = failing_dispatch
        self.error = error
        self.is_closed = False
        self.has_fired = False

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        self.countdown -= 1
        if self.countdown == 0:
            self.has_fired = True
            raise self.error
        return self.inner.dispatch(layer, rows, expert_ids, weights)

    def combine(self, handle: Handle) -> torch.Tensor:
        return self.inner.combine(handle)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def engine(small_checkpoints: dict[str, Path]) -> LocalEngine:
    return LocalEngine(small_checkpoints["like-the-real-one"])


def undisturbed(
    small_checkpoints: dict[str, Path], prompt_ids: list[int], params: SamplingParams
) -> list[int]:
    alone = LocalEngine(small_checkpoints["like-the-real-one"])
    alone.submit("a", prompt_ids, params)
    alone.run()
    return alone.tokens("a")


def test_a_stop_token_ends_the_sequence_and_is_reported(
    engine: LocalEngine, small_checkpoints: dict[str, Path]
) -> None:
    tokens = undisturbed(small_checkpoints, prompt(6), greedy(10))
    stop = tokens[4]
    engine.submit("a", prompt(6), greedy(10, stop_token_ids=(stop,)))
    engine.run()
    assert engine.tokens("a") == tokens[: tokens.index(stop) + 1]
    assert engine.finish_reason("a") == "stop"
    assert engine.deltas["a"][-1].stop_token_id == stop


def test_an_end_of_sequence_token_ends_it_unless_ignored(small_checkpoints: dict[str, Path]) -> None:
    for ignore_eos, expected in ((False, "stop"), (True, "length")):
        engine = LocalEngine(small_checkpoints["like-the-real-one"])
        eos = engine.config.eos_token_ids[0]
        params = SamplingParams(
            max_tokens=3, seed=0, temperature=0.0, ignore_eos=ignore_eos, logit_bias={eos: 100.0}
        )
        engine.submit("a", prompt(6), params)
        engine.run()
        assert engine.finish_reason("a") == expected


def test_a_cancelled_sequence_frees_its_blocks_within_a_step(engine: LocalEngine) -> None:
    engine.engine.use_exchange(engine.exchange)
    engine.submit("a", prompt(20), greedy(400))
    for _ in range(5):
        engine.engine.step_once()
    assert engine.pool.num_free < engine.pool.num_blocks
    engine.engine.cancel(0, Cancel(sequence_id="a"))
    engine.engine.step_once()
    assert engine.pool.num_free == engine.pool.num_blocks
    assert engine.finish_reason("a") is None


def test_a_connection_that_ends_takes_its_sequences_with_it_and_no_others(engine: LocalEngine) -> None:
    engine.engine.use_exchange(engine.exchange)
    engine.submit("a", prompt(20), greedy(400))
    engine.engine.step_once()
    engine.engine.leave(7)
    engine.engine.step_once()
    assert engine.engine.load.running == 1
    engine.engine.leave(0)
    engine.engine.step_once()
    assert engine.engine.load.running == 0
    assert engine.pool.num_free == engine.pool.num_blocks


@pytest.mark.parametrize("failing_dispatch", [1, 2, 3, 8])
def test_after_a_failed_exchange_the_next_one_continues_with_the_same_tokens(
    engine: LocalEngine, small_checkpoints: dict[str, Path], failing_dispatch: int
) -> None:
    params = SamplingParams(max_tokens=12, seed=5, temperature=1.0, ignore_eos=True)
    expected = undisturbed(small_checkpoints, prompt(40), params)
    broken = FailingExchange(engine.exchange, failing_dispatch, LinkError("expert-0", 1, "it died"))
    engine.engine.use_exchange(broken)
    engine.submit("a", prompt(40), params)
    for _ in range(20):
        engine.engine.step_once()
    assert broken.has_fired and broken.is_closed
    assert not engine.engine.is_ready
    assert engine.outputs[-1].is_ready is False
    engine.run()
    assert engine.tokens("a") == expected


def test_a_step_that_raises_answers_its_sequences_and_the_engine_goes_on(engine: LocalEngine) -> None:
    engine.exchange = FailingExchange(engine.exchange, 1, ZeroDivisionError("poison"))
    engine.submit("a", prompt(5), greedy(4))
    engine.run()
    assert engine.finish_reason("a") == "error"
    assert engine.deltas["a"][-1].error == "ZeroDivisionError: poison"
    engine.submit("b", prompt(5), greedy(4))
    engine.run()
    assert engine.finish_reason("b") == "length"
    assert engine.pool.num_free == engine.pool.num_blocks


def test_rows_that_an_expert_cannot_compute_are_not_sent_again(engine: LocalEngine) -> None:
    broken = FailingExchange(engine.exchange, 1, ExpertFailedError("expert-0", 0, "out of memory"))
    engine.engine.use_exchange(broken)
    engine.submit("a", prompt(5), greedy(4))
    engine.engine.step_once()
    assert broken.is_closed and not engine.engine.is_ready
    assert engine.finish_reason("a") == "error"
    assert engine.deltas["a"][-1].error == "ExpertFailedError: expert-0 in layer 0 failed: out of memory"
    assert engine.pool.num_free == engine.pool.num_blocks


def test_the_running_loop_serves_and_stops(engine: LocalEngine) -> None:
    engine.engine.start()
    engine.engine.use_exchange(engine.exchange)
    engine.submit("a", prompt(5), greedy(6))
    deadline = time.monotonic() + 20
    while ("a" not in engine.deltas or engine.finish_reason("a") is None) and time.monotonic() < deadline:
        time.sleep(0.01)
    engine.engine.stop()
    assert len(engine.tokens("a")) == 6
    assert EVERYBODY == -1
