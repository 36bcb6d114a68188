"""Links within one process: what is stale, what is no message, and what must not stick."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from actors.errors import DeadlineError, LinkError
from actors.exchange.deadline import Deadline
from actors.exchange.links import LinksExchange
from actors.exchange.message import MAGIC, RESULTS, ROWS, Header, MessageFormat
from actors.exchange.serve_links import LinkServer
from actors.exchange.tcp import TcpLink

FORMAT = MessageFormat(
    hidden_size=8, num_choices=2, dtype=torch.float32, device=torch.device("cpu"), max_rows=200_000
)


class Doubler:
    """An expert whose result is twice the row; counts its calls."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(
        self, layer: int, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        self.num_calls += 1
        return (2 * rows).repeat_interleave((ids >= 0).sum(dim=1), dim=0)


@contextmanager
def link_pair(deadline_seconds: float = 10) -> Iterator[tuple[TcpLink, TcpLink]]:
    """The dense end and the expert end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    dense = TcpLink("expert-0", ours, FORMAT, deadline_seconds)
    expert = TcpLink("dense-0", theirs, FORMAT, deadline_seconds)
    try:
        yield dense, expert
    finally:
        dense.close()
        expert.close()


def open_exchange(link: TcpLink, epoch: int, deadline_seconds: float = 10) -> LinksExchange:
    return LinksExchange([link], [range(16)], 16, epoch, deadline_seconds)


def send(exchange: LinksExchange, num_tokens: int) -> torch.Tensor:
    rows = torch.arange(num_tokens * 8, dtype=torch.float32).view(num_tokens, 8)
    ids = torch.tensor([[3, 9]]).repeat(num_tokens, 1)
    result = exchange.combine(exchange.dispatch(0, rows, ids, torch.ones(num_tokens, 2)))
    assert torch.equal(result, 4 * rows)
    return result


def test_rows_of_another_epoch_are_dropped_unseen() -> None:
    with link_pair() as (dense, expert):
        doubler = Doubler()
        server = LinkServer([expert], doubler, epoch=5)
        exchange = open_exchange(dense, epoch=4, deadline_seconds=0.3)
        with pytest.raises(DeadlineError, match=r"expert-0 in layer 0: no message within 0\.3 s"):
            send(exchange, 3)
        server.close()
        assert doubler.num_calls == 0


def test_a_stale_answer_is_dropped_and_the_right_one_taken() -> None:
    with link_pair() as (dense, expert):

        def answer() -> None:
            rows = expert.receive(None, None)
            right, payload = rows.header, rows.payload().clone()
            for header in (right._replace(epoch=6), right._replace(sequence=77), right):
                message = expert.outgoing(0)
                factor = 2 if header == right else 5
                results = (factor * payload).repeat_interleave(2, dim=0)
                message.write_results(header._replace(kind=RESULTS), results)
                expert.send(message, 0)

        thread = threading.Thread(target=answer)
        thread.start()
        send(open_exchange(dense, epoch=7), 3)
        thread.join()


def test_many_large_dispatches_at_once_do_not_block_each_other() -> None:
    """Each is far larger than the socket's buffers, and the answers twice as large, so both ends are stuck sending
    unless one reads meanwhile."""
    with link_pair() as (dense, expert):
        server = LinkServer([expert], Doubler(), epoch=1)
        exchange = open_exchange(dense, epoch=1)
        num_tokens = 200_000
        rows = torch.rand(num_tokens, 8)
        ids, weights = torch.tensor([[3, 9]]).repeat(num_tokens, 1), torch.ones(num_tokens, 2)
        handles = [exchange.dispatch(layer, rows, ids, weights) for layer in range(4)]
        for handle in reversed(handles):
            assert torch.equal(exchange.combine(handle), 4 * rows)
        server.close()


def test_a_fifth_dispatch_under_way_is_refused() -> None:
    with link_pair() as (dense, _):
        exchange = open_exchange(dense, epoch=1)
        rows, ids, weights = torch.ones(1, 8), torch.tensor([[3, 9]]), torch.ones(1, 2)
        for layer in range(4):
            exchange.dispatch(layer, rows, ids, weights)
        with pytest.raises(ValueError, match="while 4 others are under way"):
            exchange.dispatch(4, rows, ids, weights)


def test_bytes_that_are_no_message_end_the_link() -> None:
    with link_pair() as (dense, expert):
        expert._socket.sendall(b"GET / HTTP/1.1\r\nHost: expert\r\n\r\n" + bytes(64))
        with pytest.raises(LinkError, match="sent a message that starts with"):
            send(open_exchange(dense, epoch=1), 1)


@pytest.mark.parametrize(
    "change", [{"num_tokens": 200_001}, {"num_results": 7}, {"kind": 9}, {"num_tokens": -1}]
)
def test_a_header_that_cannot_be_is_refused(change: dict[str, int]) -> None:
    with link_pair() as (dense, expert):
        message = expert.outgoing(0)
        header = Header(MAGIC, RESULTS, 1, 0, 0, 1, 2, 0)
        message.write_results(header, torch.zeros(2, 8))
        fields = header._replace(num_bytes=message.header.num_bytes, **change)
        expert._socket.sendall(np.array(fields, dtype=np.int64).tobytes() + bytes(64))
        with pytest.raises(LinkError, match="sent a message"):
            dense.receive(0, Deadline(seconds=5))


def test_an_answer_with_too_few_results_is_an_error() -> None:
    with link_pair() as (dense, expert):

        def answer() -> None:
            header = expert.receive(None, None).header
            message = expert.outgoing(0)
            message.write_results(header._replace(kind=RESULTS, num_results=5), torch.zeros(5, 8))
            expert.send(message, 0)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(LinkError, match="answered 6 rows with 5"):
            send(open_exchange(dense, epoch=1), 3)
        thread.join()


def test_closing_wakes_a_thread_that_waits_for_ever() -> None:
    with link_pair() as (dense, _):
        caught: list[BaseException] = []

        def wait() -> None:
            try:
                dense.receive(None, None)
            except LinkError as error:
                caught.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        threading.Event().wait(0.1)
        dense.close()
        thread.join(5)
        assert not thread.is_alive() and "closed" in str(caught[0])


def test_a_peer_that_takes_no_bytes_is_given_up_at_the_deadline() -> None:
    with link_pair(deadline_seconds=0.3) as (dense, _):
        exchange = open_exchange(dense, epoch=1)
        with pytest.raises(DeadlineError, match="room for a message"):
            send(exchange, 200_000)


def test_routing_survives_the_way() -> None:
    with link_pair() as (dense, expert):
        message = dense.outgoing(3)
        ids, weights = np.array([[3, -1], [-1, 15]]), np.array([[0.5, 0.1], [0.2, 1e-7]], np.float32)
        header = Header(MAGIC, ROWS, 1, 12, 3, 2, 2, 0)
        message.write_rows(header, ids, weights).copy_(torch.arange(16.0).view(2, 8))
        dense.send(message, 3)
        received = expert.receive(None, Deadline(seconds=5))
        got_ids, got_weights = received.routing()
        assert received.header[:-1] == header[:-1]
        assert got_ids.tolist() == ids.tolist() and torch.equal(got_weights, torch.from_numpy(weights))
        assert torch.equal(received.payload(), torch.arange(16.0).view(2, 8))
