"""Decoding steps whose exchanges the kernels carry out by themselves: they have the bits of a local step,
whatever happens to a link."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable
from functools import cache

import pytest
import torch

from actors.checkpoint.dummy.dummy_reader import DummyReader
from actors.checkpoint.weights import read_dense
from actors.dense.kv_cache import KVCache
from actors.dense.layers.norm import norm_kernels
from actors.dense.model import DenseModel
from actors.dense.scheduling.scheduler import Chunk
from actors.dense.scheduling.sequence import Sequence
from actors.errors import ExpertFailedError, NoHolderError
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.interface import Exchange, Handle
from actors.exchange.local import LocalExchange
from actors.protocol.messages import SamplingParams
from tests.exchange.peers import ALL, CONFIG, Act, Network, ScriptedPeer, experts, network

CPU = torch.device("cpu")
BLOCK_SIZE = 16
NUM_ROWS = [1, 2, 9]
HALVES = {0: range(8), 1: range(8, 16)}
BOTH = {0: ALL, 1: ALL}

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(norm_kernels(CONFIG, torch.float32, CPU) is None, reason="no kernels here"),
]


@cache
def model() -> DenseModel:
    return DenseModel(CONFIG, read_dense(DummyReader(CONFIG), CONFIG, torch.float32, "cpu"))


def step(num_rows: int, exchange: Exchange) -> torch.Tensor:
    """The result [B, H] of one decoding step of B sequences, each at its first position."""
    chunks = []
    for index in range(num_rows):
        made = Sequence(
            sequence_id=str(index),
            owner=0,
            prompt_ids=[(3 + 11 * index) % 200],
            output_ids=[],
            params=SamplingParams(max_tokens=1, seed=0),
            arrival=index,
        )
        made.blocks = array("i", [index])
        chunks.append(Chunk(made, 0, 1))
    cache = KVCache(CONFIG, num_rows, BLOCK_SIZE, torch.float32, CPU)
    return model().step(chunks, cache, exchange).clone()


@cache
def expected(num_rows: int) -> torch.Tensor:
    return step(num_rows, LocalExchange(experts().forward))


def once(number: int, act: str) -> Act:
    return lambda request: act if request == number else "answer"


class Watched:
    """Counts dispatches, which are what the kernels do not do by themselves."""

    def __init__(self, made: Network, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_dispatches = 0
        self._dispatch: Callable[..., Handle] = made.exchange.dispatch
        monkeypatch.setattr(made.exchange, "dispatch", self._count)

    def _count(self, *arguments: object) -> Handle:
        self.num_dispatches += 1
        return self._dispatch(*arguments)


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("held", [HALVES, BOTH, {0: ALL}, {0: ALL[:3], 1: ALL[3:], 2: ALL[10:]}])
def test_the_plain_course_is_the_kernels_own(
    monkeypatch: pytest.MonkeyPatch, num_rows: int, held: dict[int, range]
) -> None:
    with network(held) as made:
        watched = Watched(made, monkeypatch)
        for _ in range(3):
            assert torch.equal(step(num_rows, made.exchange), expected(num_rows))
        assert watched.num_dispatches == 0
        assert not any(peer.owed for peer in made.exchange.peers.table.peers)


def test_routes_are_counted_as_elsewhere() -> None:
    local = ExpertLoad(16)
    step(9, LocalExchange(experts().forward, local))
    with network(HALVES) as made:
        step(9, made.exchange)
        assert made.load.rows() == local.rows()


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("act", ["close", "half", "hang", "fail", "refuse"])
@pytest.mark.parametrize("number", [0, 2])
def test_with_a_replica_whatever_happens_to_a_link_changes_no_bit(
    num_rows: int, act: str, number: int
) -> None:
    with network(BOTH, {0: once(number, act), 1: once(number, "answer")}, late=0.1) as made:
        for _ in range(4):
            assert torch.equal(step(num_rows, made.exchange), expected(num_rows))
        for peer in made.peers:
            peer.released.set()
        assert act in made.peers[0].acts
        for _ in range(2):
            assert torch.equal(step(num_rows, made.exchange), expected(num_rows))


def test_the_kernels_go_on_after_a_late_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with network({0: ALL}, {0: once(1, "hang")}, late=0.05) as made:
        alarm = threading.Timer(0.3, made.peers[0].released.set)
        alarm.start()
        assert torch.equal(step(2, made.exchange), expected(2))
        alarm.join()
        watched = Watched(made, monkeypatch)
        assert torch.equal(step(2, made.exchange), expected(2))
        assert watched.num_dispatches == 0


def test_a_layer_whose_only_holder_ends_waits_for_the_next_one() -> None:
    with network({0: ALL}, {0: once(2, "close")}) as made:

        def come_back() -> None:
            time.sleep(0.2)
            made.attach(ScriptedPeer(0))

        thread = threading.Thread(target=come_back)
        thread.start()
        assert torch.equal(step(9, made.exchange), expected(9))
        thread.join()
        assert [peer.num_requests for peer in made.peers] == [3, CONFIG.num_layers - 2]


def test_a_change_of_holders_ends_the_kernels_wait_and_nothing_is_lost() -> None:
    with network({0: ALL}, {0: once(1, "hang")}, late=30) as made:

        def move() -> None:
            time.sleep(0.2)
            made.exchange.peers.announce(made.name({1: ALL}))
            made.attach(ScriptedPeer(1))
            made.settle({1: ALL})

        thread = threading.Thread(target=move)
        began = time.monotonic()
        thread.start()
        assert torch.equal(step(2, made.exchange), expected(2))
        thread.join()
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(("act", "error"), [("fail", ExpertFailedError), ("refuse", NoHolderError)])
def test_what_nobody_can_compute_is_an_error_and_the_next_step_is_not(
    act: str, error: type[Exception]
) -> None:
    with network({0: ALL}, {0: once(1, act)}, park=0.2) as made:
        with pytest.raises(error):
            step(2, made.exchange)
        made.settle({0: ALL})
        assert torch.equal(step(2, made.exchange), expected(2))


def test_more_rows_than_stay_whole_go_the_common_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with network(HALVES) as made:
        watched = Watched(made, monkeypatch)
        assert torch.equal(step(130, made.exchange), expected(130))
        assert watched.num_dispatches == CONFIG.num_layers
