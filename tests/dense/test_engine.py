"""The engine around the model: ends, cancellation, failed exchanges and failed steps."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from actors.dense.step_results import EVERYBODY
from actors.errors import ExpertFailedError, LinkError, NoHolderError
from actors.exchange.interface import Exchange, Handle
from actors.protocol.messages import Cancel, SamplingParams
from tests.dense.local_engine import LocalEngine, greedy
from tests.dense.test_exact import prompt


class FailingExchange:
    """The real exchange, except that one dispatch raises."""

    kernels = None

    def __init__(self, inner: Exchange, failing_dispatch: int, error: Exception) -> None:
        self.inner = inner
        self.countdown = failing_dispatch
        self.error = error
        self.is_closed = False
        self.has_fired = False
        self.is_ready = True

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

    def maintain(self) -> None:
        pass

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


class PoisonedExchange(FailingExchange):
    """The real exchange, except that it raises if it is sent the rows of some token, or too many rows."""

    def __init__(
        self, inner: Exchange, error: Exception, poison: torch.Tensor | None = None, max_rows: int = 1_000_000
    ) -> None:
        super().__init__(inner, -1, error)
        self.poison = poison
        self.max_rows = max_rows
        self.num_fired = 0

    def dispatch(
        self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
    ) -> Handle:
        is_poisoned = (
            self.poison is not None
            and layer == 0
            and bool(torch.isclose(rows, self.poison, atol=1e-4).all(1).any())
        )
        if is_poisoned or len(rows) > self.max_rows:
            self.num_fired += 1
            raise self.error
        return self.inner.dispatch(layer, rows, expert_ids, weights)


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
    assert not any(output.is_ready for output in engine.outputs[-1:])
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


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("poison"), ExpertFailedError("expert-0", 0, "ValueError: poison")]
)
@pytest.mark.parametrize("culprit", [0, 3, 6])
def test_a_poisoned_sequence_fails_alone_and_all_others_go_on_with_the_same_tokens(
    engine: LocalEngine, small_checkpoints: dict[str, Path], error: Exception, culprit: int
) -> None:
    params = [
        SamplingParams(max_tokens=6, seed=n, temperature=1.0, ignore_eos=True, prompt_logprobs=0)
        for n in range(7)
    ]
    prompts = [prompt(4 + n, n) for n in range(7)]
    # The first row of layer 0 belongs to the first token alone, so a first token that no other prompt has
    # marks the culprit.
    prompts = [[100 + n, *ids] for n, ids in enumerate(prompts)]
    exchange = PoisonedExchange(engine.exchange, error, first_row(engine, prompts[culprit]))
    engine.engine.use_exchange(exchange)
    for n, ids in enumerate(prompts):
        engine.submit(str(n), ids, params[n])
    engine.run()
    for n, ids in enumerate(prompts):
        if n == culprit:
            assert engine.finish_reason(str(n)) == "error"
            assert "poison" in (engine.deltas[str(n)][-1].error or "")
            continue
        assert engine.tokens(str(n)) == undisturbed(small_checkpoints, ids, params[n])
        assert engine.finish_reason(str(n)) == "length"
        reported = [delta.prompt_logprobs for delta in engine.deltas[str(n)] if delta.prompt_logprobs]
        assert [len(logprobs) for logprobs in reported] == [len(ids) - 1]
    assert exchange.num_fired > 1 and not exchange.is_closed
    assert engine.engine.num_failed_sequences == 1
    assert engine.pool.num_free == engine.pool.num_blocks


def test_a_step_that_runs_out_of_memory_is_computed_in_parts(
    engine: LocalEngine, small_checkpoints: dict[str, Path]
) -> None:
    prompts = [prompt(n, n) for n in (3, 30, 7)]
    expected = [undisturbed(small_checkpoints, ids, greedy(5)) for ids in prompts]
    error = torch.OutOfMemoryError("no room for that many rows")
    exchange = PoisonedExchange(engine.exchange, error, max_rows=8)
    engine.exchange = exchange
    for n, ids in enumerate(prompts):
        engine.submit(str(n), ids, greedy(5))
    engine.run()
    assert exchange.num_fired > 2
    assert [engine.tokens(str(n)) for n in range(3)] == expected


def test_a_sequence_without_room_for_a_single_row_fails(engine: LocalEngine) -> None:
    engine.exchange = PoisonedExchange(engine.exchange, torch.OutOfMemoryError("no room"), max_rows=0)
    engine.submit("a", prompt(5), greedy(4))
    engine.run()
    assert engine.finish_reason("a") == "error"
    assert engine.deltas["a"][-1].error == "OutOfMemoryError: no room"


def test_rows_that_nobody_came_to_compute_are_answered_with_an_error(engine: LocalEngine) -> None:
    broken = FailingExchange(engine.exchange, 2, NoHolderError(1, (3, 5), 120.0))
    engine.engine.use_exchange(broken)
    engine.submit("a", prompt(5), greedy(4))
    engine.engine.step_once()
    assert not broken.is_closed and engine.engine.is_ready
    assert engine.finish_reason("a") == "error"
    assert (
        engine.deltas["a"][-1].error
        == "NoHolderError: no expert actor with experts 3, 5 in layer 1 for 120 s"
    )
    assert engine.deltas["a"][-1].is_worth_retrying
    assert engine.pool.num_free == engine.pool.num_blocks


def test_nothing_is_begun_while_an_expert_cannot_be_reached(engine: LocalEngine) -> None:
    exchange = FailingExchange(engine.exchange, -1, LinkError("nobody", None, "never raised"))
    exchange.is_ready = False
    engine.engine.use_exchange(exchange)
    engine.submit("a", prompt(5), greedy(4))
    engine.engine.step_once()
    assert engine.engine.num_steps == 0 and engine.engine.load.waiting == 1
    exchange.is_ready = True
    engine.engine.step_once()
    assert engine.engine.num_steps == 1
    assert engine.outputs[-1].is_ready


def test_sequences_that_wait_between_steps_are_answered_too(small_checkpoints: dict[str, Path]) -> None:
    engine = LocalEngine(small_checkpoints["like-the-real-one"], park_seconds=0.2)
    exchange = FailingExchange(engine.exchange, -1, LinkError("nobody", None, "never raised"))
    engine.engine.use_exchange(exchange)
    engine.submit("a", prompt(5), greedy(4))
    engine.engine.step_once()
    exchange.is_ready = False
    began = time.monotonic()
    while engine.finish_reason("a") is None and time.monotonic() < began + 20:
        engine.engine.step_once()
    assert time.monotonic() >= began + 0.2
    last = engine.deltas["a"][-1]
    assert last.error == "NotReadyError: not linked to holders of all experts for 0.2 s"
    assert last.is_worth_retrying
    assert engine.pool.num_free == engine.pool.num_blocks


def test_sequences_behind_a_step_that_waited_in_vain_do_not_wait_as_long_again(
    small_checkpoints: dict[str, Path],
) -> None:
    engine = LocalEngine(small_checkpoints["like-the-real-one"], park_seconds=20.0)

    class LosingExchange(FailingExchange):
        """An exchange whose expert has lost its last holder, so that a step waits in vain; meanwhile another
        sequence is submitted."""

        def dispatch(
            self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
        ) -> Handle:
            if self.is_ready:
                self.is_ready = False
                engine.submit("late", prompt(5), greedy(4))
            now[0] += 20.0
            raise self.error

    now = [time.monotonic()]
    engine.engine.use_exchange(LosingExchange(engine.exchange, -1, NoHolderError(0, (3,), 20.0)))
    engine.submit("a", prompt(5), greedy(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.dense.engine.time.monotonic", lambda: now[0])
        engine.engine.step_once()
        engine.engine.step_once()
    assert engine.deltas["a"][-1].error == "NoHolderError: no expert actor with experts 3 in layer 0 for 20 s"
    assert engine.deltas["late"][-1].error == "NotReadyError: not linked to holders of all experts for 20 s"
    assert engine.pool.num_free == engine.pool.num_blocks


def first_row(engine: LocalEngine, prompt_ids: list[int]) -> torch.Tensor:
    """The row that the exchange gets in layer 0 for a prompt's first token."""
    seen: list[torch.Tensor] = []

    class Watching(FailingExchange):
        def dispatch(
            self, layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
        ) -> Handle:
            seen.append(rows.clone())
            return self.inner.dispatch(layer, rows, expert_ids, weights)

    probe = engine.engine
    probe.use_exchange(Watching(engine.exchange, -1, LinkError("nobody", None, "never raised")))
    engine.submit("probe", prompt_ids, greedy(1))
    probe.step_once()
    return seen[0][:1]


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
