"""Links whose peers end, hang, fail or answer late: results are the bits of `local`, or an error."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from actors.errors import ExpertFailedError, LinkError, NoHolderError
from tests.exchange.peers import ALL, Act, Case, ScriptedPeer, network

BOTH = {0: ALL, 1: ALL}


def at(number: int, act: str) -> Act:
    return lambda request: act if request == number else "answer"


def always(act: str) -> Act:
    return lambda request: act


@pytest.mark.parametrize("way", ["close", "half", "fail", "refuse"])
@pytest.mark.parametrize("num_tokens", [1, 9, 700])
def test_whatever_becomes_of_a_request_a_replica_answers_with_the_same_bits(
    num_tokens: int, way: str
) -> None:
    cases = [Case(num_tokens, layer=number % 2) for number in range(4)]
    for number in range(4):
        with network(BOTH, {0: at(number, way)}) as net:
            for case in cases:
                case.check(net.exchange)
            assert way in net.peers[0].acts or net.peers[0].num_requests <= number
            assert net.exchange.is_ready


@pytest.mark.parametrize("way", ["close", "half"])
def test_of_three_holders_two_may_die_in_the_same_layer(way: str) -> None:
    held = {0: ALL, 1: ALL, 2: ALL}
    for first in range(3):
        for second in range(3):
            with network(held, {0: at(first, way), 1: at(second, way)}) as net:
                for number in range(4):
                    Case(300, layer=number % 2).check(net.exchange)


def test_several_dispatches_under_way_survive_a_death_together() -> None:
    with network(BOTH, {0: always("close")}) as net:
        cases = [Case(size) for size in (1, 300, 5, 40)]
        handles = [net.exchange.dispatch(c.layer, c.rows, c.ids, c.weights) for c in cases]
        for case, handle in reversed(list(zip(cases, handles, strict=True))):
            assert torch.equal(net.exchange.combine(handle), case.expected)


@pytest.mark.parametrize("num_tokens", [1, 40])
def test_without_a_replica_the_layer_waits_for_the_next_link_and_wakes_at_once(num_tokens: int) -> None:
    held = {0: range(8), 1: range(8, 16)}
    with network(held, {1: at(0, "close")}) as net:
        attached_at: list[float] = []

        def restart() -> None:
            attached_at.append(time.monotonic())
            net.attach(ScriptedPeer(1))

        case = Case(num_tokens, ids=torch.tensor([[3, 12]]).repeat(num_tokens, 1))
        timer = threading.Timer(0.3, restart)
        timer.start()
        case.check(net.exchange)
        woken_at = time.monotonic()
        timer.join()
        assert 0 < woken_at - attached_at[0] < 0.25
        assert net.peers[0].num_requests == 1  # Results that had come were not computed again.
        assert net.exchange.is_ready


def test_a_membership_that_comes_while_a_layer_is_parked_takes_effect_in_it() -> None:
    held = {0: range(8), 1: range(8, 16)}
    with network(held, {1: at(0, "close")}) as net:
        timer = threading.Timer(0.2, lambda: net.settle({0: ALL}))
        timer.start()
        assert 0.15 < Case(200).check(net.exchange) < 2
        timer.join()


def test_a_membership_that_is_coming_adds_holders_before_it_is_settled() -> None:
    with network({0: range(8), 1: range(8, 16)}) as net:
        Case(50).check(net.exchange)
        net.exchange.peers.announce(net.name({0: ALL, 1: ALL}))
        assert net.exchange.peers.table.owners is None
        Case(50).check(net.exchange)
        net.settle({1: ALL})
        Case(50).check(net.exchange)
        assert net.exchange.peers.lost() == ()
        assert len(net.exchange.peers.table.peers) == 1


def test_rows_that_wait_in_vain_raise_and_others_still_get_through() -> None:
    with network({0: range(8), 1: range(8, 16)}, {1: always("close")}, park=0.3) as net:
        case = Case(3, ids=torch.tensor([[0, 8], [9, 1], [2, 3]]))
        started_at = time.monotonic()
        with pytest.raises(NoHolderError, match=r"no expert actor with experts 8, 9 in layer 0 for 0\.3 s"):
            case.check(net.exchange)
        assert 0.25 < time.monotonic() - started_at < 2
        assert not net.exchange.is_ready and net.exchange.peers.lost() == ("expert-1",)
        Case(40, chosen=range(8)).check(net.exchange)


def test_a_late_answer_is_overtaken_by_a_replica_and_never_taken_for_a_fresh_one() -> None:
    with network(BOTH, {0: at(1, "hang")}, late=0.1) as net:
        both_asked = torch.tensor([[0, 1]])
        Case(1, ids=both_asked).check(net.exchange)
        seconds = Case(1, ids=both_asked).check(net.exchange)
        assert 0.08 < seconds < 1
        assert net.exchange.peers.suspected() == ("expert-0",)
        for _ in range(5):
            assert Case(7).check(net.exchange) < 0.5  # The suspected peer is not asked.
        num_before = net.peers[0].num_requests
        net.peers[0].released.set()
        deadline = time.monotonic() + 5
        while net.exchange.peers.suspected():
            assert time.monotonic() < deadline
            net.exchange.maintain()
        for _ in range(10):
            Case(7).check(net.exchange)
        assert net.peers[0].num_requests > num_before


def test_without_a_replica_a_late_peer_is_suspected_and_waited_for() -> None:
    with network({0: ALL}, {0: at(3, "hang")}, late=0.1) as net:
        for _ in range(3):
            Case(4).check(net.exchange)
        seen: list[tuple[str, ...]] = []

        def release() -> None:
            seen.append(net.exchange.peers.suspected())
            net.peers[0].released.set()

        timer = threading.Timer(0.5, release)
        timer.start()
        assert Case(4).check(net.exchange) >= 0.4
        timer.join()
        assert seen == [("expert-0",)]
        assert net.exchange.peers.suspected() == ()


def test_a_peer_that_keeps_silent_is_dropped_at_the_deadline() -> None:
    with network({0: ALL}, {0: at(0, "hang")}, late=0.1, dead=0.4, park=5) as net:
        timer = threading.Timer(0.8, lambda: net.attach(ScriptedPeer(0)))
        timer.start()
        assert 0.7 < Case(4).check(net.exchange) < 3
        timer.join()


def test_a_link_that_ends_while_nothing_is_sent_is_seen_at_once() -> None:
    with network({0: range(8), 1: range(8, 16)}) as net:
        Case(9).check(net.exchange)
        net.peers[1]._own.end()
        deadline = time.monotonic() + 1
        while net.exchange.peers.lost() != ("expert-1",):
            assert time.monotonic() < deadline
        assert net.exchange.is_ready
        net.exchange.maintain()
        assert not net.exchange.is_ready


def test_rows_that_every_holder_fails_on_raise_and_the_exchange_goes_on() -> None:
    is_failing = threading.Event()
    is_failing.set()
    act = lambda number: "fail" if is_failing.is_set() else "answer"  # noqa: E731
    with network(BOTH, {0: act, 1: act}) as net:
        with pytest.raises(ExpertFailedError, match=r"expert-\d in layer 0 failed: ValueError: on purpose"):
            Case(1, chosen=(4, 5)).check(net.exchange)
        is_failing.clear()
        for _ in range(3):
            Case(33).check(net.exchange)


def test_who_refuses_an_expert_is_not_asked_for_it_until_the_next_membership() -> None:
    with network(BOTH, {0: always("refuse")}) as net:
        for number in range(6):
            Case(1, chosen=(3, 4), layer=number % 2).check(net.exchange)
        assert net.peers[0].num_requests <= 2
        num_before = net.peers[0].num_requests
        net.settle({0: ALL, 1: ALL})
        for number in range(4):
            Case(1, chosen=(3, 4), layer=number % 2).check(net.exchange)
        assert net.peers[0].num_requests > num_before


def test_a_peer_that_takes_no_bytes_holds_up_nobody() -> None:
    """Rows for a stuck peer are far larger than the socket's buffers; rows for other peers leave at once."""
    with network({0: ALL, 1: ALL}, {0: at(0, "hang")}, late=0.2) as net:
        cases = [Case(4000, layer=number % 2) for number in range(2)]
        for case in cases:
            assert case.check(net.exchange) < 5
        assert net.peers[0].acts == ["hang"]


def test_interrupting_wakes_a_parked_layer() -> None:
    with network({0: ALL}, {0: always("close")}) as net:
        timer = threading.Timer(0.2, net.exchange.interrupt)
        timer.start()
        with pytest.raises(LinkError, match="closed"):
            Case(1).check(net.exchange)
        timer.join()
        with pytest.raises(LinkError, match="closed"):
            net.exchange.dispatch(
                0, torch.zeros(1, 8), torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2)
            )


def test_routes_are_counted_by_layer_and_expert_once_however_often_they_are_sent() -> None:
    with network(BOTH, {0: at(1, "close")}) as net:
        expected = torch.zeros(2, 16, dtype=torch.int64)
        for number in range(6):
            case = Case(5 if number % 3 else 1, layer=number % 2)
            expected[number % 2] += torch.bincount(case.ids.reshape(-1), minlength=16)
            case.check(net.exchange)
        assert net.load.rows() == tuple(map(tuple, expected.tolist()))
