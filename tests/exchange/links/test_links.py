"""One link and the server behind it: stale messages, bytes that are no message, and the order of service."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from actors.errors import LinkError
from actors.exchange.interface import NotHeldError, Serve
from actors.exchange.links.backends.tcp_link import TcpLink
from actors.exchange.links.expert.server import LinkServer
from actors.exchange.message import FAILURE, MAGIC, NOT_HELD, RESULTS, ROWS, Header, Message, MessageFormat
from tests.exchange.peers import CONFIG, experts, wait_for
from tests.exchange.tcp_ends import served_ends, tcp_ends

FORMAT = MessageFormat(
    hidden_size=8, num_choices=2, dtype=torch.float32, device=torch.device("cpu"), max_rows=200_000
)


class Doubler:
    """An expert whose result is twice the row. It keeps the number of rows of each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.is_free = threading.Event()
        self.is_free.set()
        self.has_begun = threading.Event()

    def __call__(
        self, layer: int, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        self.calls.append(len(rows))
        self.has_begun.set()
        assert self.is_free.wait(10)
        if layer == 13:
            raise ValueError("unlucky")
        if layer == 14:
            raise NotHeldError([3, 9])
        return (2 * rows).repeat_interleave((ids >= 0).sum(dim=1), dim=0)


@contextmanager
def link_pair() -> Iterator[tuple[TcpLink, TcpLink]]:
    """The dense end and the expert end of one link."""
    dense, expert = tcp_ends(FORMAT, 10)
    try:
        yield dense, expert
    finally:
        dense.close()
        expert.close()


@contextmanager
def serving(serve: Serve, num_links: int, deadline_seconds: float = 10) -> Iterator[list[TcpLink]]:
    """The dense ends of links that a server serves."""
    with served_ends(LinkServer(serve, deadline_seconds), num_links, FORMAT, 10) as dense:
        yield dense


def send(link: TcpLink, rows: torch.Tensor, sequence: int = 0, layer: int = 0, epoch: int = 1) -> None:
    count = len(rows)
    message = link.outgoing()
    header = Header(MAGIC, ROWS, epoch, sequence, layer, count, 2 * count, 0)
    ids = np.array([[3, 9]]).repeat(count, axis=0)
    message.write_rows(header, ids, np.ones((count, 2), np.float32)).copy_(rows)
    link.send(message)


def random_rows(count: int) -> torch.Tensor:
    return torch.rand(count, 8)


def is_doubled(message: Message, rows: torch.Tensor) -> bool:
    return torch.equal(message.payload(), (2 * rows).repeat_interleave(2, dim=0))


def test_rows_of_another_epoch_are_dropped_unseen() -> None:
    doubler = Doubler()
    with serving(doubler, 1) as (link,):
        send(link, random_rows(3), sequence=1, epoch=7)
        rows = random_rows(2)
        send(link, rows, sequence=2)
        answer = wait_for(link)
        assert answer.header.sequence == 2 and is_doubled(answer, rows)
        assert doubler.calls == [2]


def test_rows_of_the_same_layer_that_wait_on_several_links_are_computed_together() -> None:
    doubler = Doubler()
    with serving(doubler, 4) as links:
        rows = [random_rows(count) for count in (5, 1, 2, 3)]
        doubler.is_free.clear()
        send(links[0], rows[0], layer=1)
        assert doubler.has_begun.wait(5)
        for link, own, layer in zip(links[1:], rows[1:], (2, 3, 2), strict=True):
            send(link, own, layer=layer)
        time.sleep(0.2)
        doubler.is_free.set()
        for link, own in zip(links, rows, strict=True):
            assert is_doubled(wait_for(link), own)
        assert sorted(doubler.calls) == [2, 4, 5]


def test_what_is_computed_together_has_the_bits_of_what_is_computed_alone() -> None:
    held = experts()
    routes = [torch.rand(count, 16).argsort(dim=1)[:, :2] for count in (1, 4, 30)]
    weights = [torch.rand(len(ids), 2) for ids in routes]
    rows = [torch.randn(len(ids), CONFIG.hidden_size) for ids in routes]
    together = held.forward(0, torch.cat(rows), torch.cat(routes), torch.cat(weights), 70)
    alone = [
        held.forward(0, own, ids, scales, 2 * len(own))
        for own, ids, scales in zip(rows, routes, weights, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_two_busy_links_are_served_alternately() -> None:
    """Both links always have rows waiting."""
    order: list[int] = []

    def serve(
        layer: int, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        order.append(layer)
        time.sleep(0.01)
        return (2 * rows).repeat_interleave(2, dim=0)

    with serving(serve, 2) as links:
        for sequence in range(6):
            for layer, link in enumerate(links):
                send(link, random_rows(1), sequence, layer)
        for link in links:
            for sequence in range(6):
                assert wait_for(link).header.sequence == sequence
    assert order[2:-2].count(0) == order[2:-2].count(1) == 4


def test_an_expert_that_raises_says_why_and_goes_on() -> None:
    with serving(Doubler(), 1) as (link,):
        send(link, random_rows(2), layer=13)
        answer = wait_for(link)
        assert answer.header.kind == FAILURE and answer.failure() == "ValueError: unlucky"
        send(link, random_rows(2), layer=14)
        answer = wait_for(link)
        assert answer.header.kind == NOT_HELD and answer.failure() == "3,9"
        rows = random_rows(2)
        send(link, rows)
        assert is_doubled(wait_for(link), rows)


def test_rows_that_cannot_be_computed_fail_alone_though_others_were_computed_with_them() -> None:
    is_free, has_begun = threading.Event(), threading.Event()

    def serve(
        layer: int, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        has_begun.set()
        assert is_free.wait(10)
        if (rows == 1).all(dim=1).any():
            raise ValueError("poison")
        return (2 * rows).repeat_interleave(2, dim=0)

    with serving(serve, 3) as links:
        send(links[0], random_rows(1), layer=5)
        assert has_begun.wait(5)
        rows = random_rows(3)
        send(links[1], torch.ones(2, 8))
        send(links[2], rows)
        time.sleep(0.2)
        is_free.set()
        assert wait_for(links[1]).header.kind == FAILURE
        assert is_doubled(wait_for(links[2]), rows)


def test_who_does_not_read_its_answers_holds_up_nobody_and_is_dropped_in_the_end() -> None:
    with serving(Doubler(), 2, deadline_seconds=1) as (deaf, link):
        send(deaf, random_rows(200_000))
        while deaf.has_unsent:
            deaf.flush()
        for sequence in range(20):
            rows = random_rows(3)
            send(link, rows, sequence)
            assert is_doubled(wait_for(link, 2), rows)
        time.sleep(1.2)
        with pytest.raises(LinkError, match="closed"):
            wait_for(deaf)  # Only bytes that were on their way already come.
        send(link, rows)
        assert is_doubled(wait_for(link), rows)


def test_a_dense_actor_that_dies_with_rows_waiting_disturbs_nobody() -> None:
    doubler = Doubler()
    with serving(doubler, 3) as links:
        doubler.is_free.clear()
        rows = random_rows(3)
        send(links[0], rows)
        assert doubler.has_begun.wait(5)
        send(links[1], random_rows(4))
        links[1].end()
        send(links[2], rows)
        time.sleep(0.1)
        doubler.is_free.set()
        for link in (links[0], links[2]):
            assert is_doubled(wait_for(link), rows)


def test_many_large_messages_at_once_do_not_block_each_other() -> None:
    """Each message is far larger than the socket's buffers, and its answer is twice as large."""
    with serving(Doubler(), 1) as (link,):
        rows = random_rows(200_000)
        for sequence in range(4):
            send(link, rows, sequence)
        for sequence in range(4):
            answer = wait_for(link, 30)
            assert answer.header.sequence == sequence and is_doubled(answer, rows)


def test_bytes_that_are_no_message_end_the_link() -> None:
    with link_pair() as (dense, expert):
        expert._socket.sendall(b"GET / HTTP/1.1\r\nHost: expert\r\n\r\n" + bytes(64))
        with pytest.raises(LinkError, match="sent a message that starts with"):
            wait_for(dense)


@pytest.mark.parametrize(
    "change", [{"num_tokens": 200_001}, {"num_results": 7}, {"kind": 9}, {"num_tokens": -1}]
)
def test_a_header_that_cannot_be_is_refused(change: dict[str, int]) -> None:
    with link_pair() as (dense, expert):
        message = expert.outgoing()
        message.write_results(Header(MAGIC, RESULTS, 1, 0, 0, 1, 2, 0), torch.zeros(2, 8))
        fields = message.header._replace(**change)
        expert._socket.sendall(np.array(fields, dtype=np.int64).tobytes() + bytes(64))
        with pytest.raises(LinkError, match="sent a message"):
            wait_for(dense)


def test_a_link_that_was_ended_is_so_at_both_ends() -> None:
    with link_pair() as (dense, expert):
        assert not dense.is_ended() and not expert.is_ended()
        dense.end()
        dense.end()
        assert dense.is_ended() and expert.is_ended()
        for link in (dense, expert):
            with pytest.raises(LinkError, match="closed"):
                wait_for(link)


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_routing_survives_the_way(num_tokens: int) -> None:
    with link_pair() as (dense, expert):
        message = dense.outgoing()
        ids = np.array([[3, -1], [-1, 15]])[:num_tokens]
        weights = np.array([[0.5, 0.1], [0.2, 1e-7]], np.float32)[:num_tokens]
        header = Header(MAGIC, ROWS, 1, 12, 3, num_tokens, num_tokens, 0)
        rows = torch.arange(8.0 * num_tokens).view(num_tokens, 8)
        if num_tokens == 1:
            message.write_row(header, ids[0].tolist(), weights[0].tolist()).copy_(rows)
        else:
            message.write_rows(header, ids, weights).copy_(rows)
        dense.send(message)
        received = wait_for(expert)
        got_ids, got_weights = received.routing()
        assert received.header[:-1] == header[:-1]
        assert got_ids.tolist() == ids.tolist() and torch.equal(got_weights, torch.from_numpy(weights))
        assert torch.equal(received.payload(), rows)
