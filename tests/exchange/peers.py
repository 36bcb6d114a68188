"""Expert actors in the test's process, behind real sockets, that misbehave at an exact request."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import torch

from actors.checkpoint.dummy.presets import preset_config
from actors.errors import LinkError
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.links.backends.tcp_link import TcpLink
from actors.exchange.links.dense.exchange import LinksExchange
from actors.exchange.links.dense.hedging import WaitLimits
from actors.exchange.local import LocalExchange
from actors.exchange.message import FAILURE, NOT_HELD, RESULTS, Message, MessageFormat
from actors.expert.experts import GroupedExperts
from actors.protocol.messages import ExpertMember, Membership
from tests.exchange.processes import PRESET, load_all
from tests.exchange.tcp_ends import tcp_ends

CONFIG = preset_config(PRESET)
FORMAT = MessageFormat(
    hidden_size=CONFIG.hidden_size,
    num_choices=2,
    dtype=torch.float32,
    device=torch.device("cpu"),
    max_rows=4096,
)
ALL = tuple(range(16))

Act = Callable[[int], str]
"""Number of a request -> what the peer does with it; see `ScriptedPeer`."""


@cache
def experts() -> GroupedExperts:
    return load_all(torch.float32)[1]


def wait_for(link: TcpLink, seconds: float = 5) -> Message:
    """Wait for the next message on a link, and send unsent bytes meanwhile."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(link, select.POLLIN)
    while (message := link.receive()) is None:
        assert time.monotonic() < deadline, "no message came"
        if link.has_unsent:
            link.flush()
        poll.poll(10)
    return message


class ScriptedPeer:
    """A peer with all experts. `act(n)` says what it does with its n-th request, counted from 0:

    answer     answer correctly
    close      end the link instead
    half       send half of the answer, then end the link
    hang       wait for `released`, then answer
    fail       say that it could not compute
    refuse     say that it does not hold the experts
    """

    def __init__(self, index: int, act: Act = lambda number: "answer") -> None:
        self.index = index
        self.acts: list[str] = []
        self.released = threading.Event()
        self._act = act
        self._is_ended = threading.Event()
        self.link, self._own = tcp_ends(FORMAT, 30, expert=f"expert-{index}")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def num_requests(self) -> int:
        return len(self.acts)

    def stop(self) -> None:
        self._is_ended.set()
        self.released.set()
        self._own.end()
        self._thread.join(10)
        self._own.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._own, select.POLLIN)
        try:
            while not self._is_ended.is_set():
                poll.poll(1000)
                while (message := self._own.receive()) is not None:
                    self._treat(message)
        except LinkError:
            self._own.end()

    def _treat(self, message: Message) -> None:
        header = message.header
        act = self._act(self.num_requests)
        self.acts.append(act)
        if act == "close":
            raise LinkError("", None, "on purpose")
        if act == "hang":
            self.released.wait(30)
        answer = self._own.outgoing()
        if act == "fail":
            answer.write_failure(header._replace(kind=FAILURE), "ValueError: on purpose")
        elif act == "refuse":
            ids = sorted(set(message.routing()[0].reshape(-1).tolist()) - {-1})
            answer.write_failure(header._replace(kind=NOT_HELD), ",".join(map(str, ids)))
        else:
            routes, weights = message.routing()
            results = experts().forward(header.layer, message.payload(), routes, weights, header.num_results)
            answer.write_results(header._replace(kind=RESULTS), results)
        if act == "half":
            self._own._socket.setblocking(True)
            self._own._socket.sendall(answer.host_view[: answer.num_host_bytes // 2])
            raise LinkError("", None, "on purpose")
        self._own.send(answer)
        while self._own.has_unsent:
            time.sleep(0.001)
            self._own.flush()


class Network:
    """The exchange of a dense actor, and its peers."""

    def __init__(self, limits: WaitLimits) -> None:
        self.load = ExpertLoad(16)
        self.exchange = LinksExchange(16, limits, self.load, on_change=lambda: None)
        self.peers: list[ScriptedPeer] = []
        self._epoch = 0

    def name(self, held: Mapping[int, Sequence[int]]) -> Membership:
        """The next membership. `held` has the experts of each actor, by index."""
        self._epoch += 1
        members = tuple(ExpertMember(index=index, experts=tuple(own)) for index, own in held.items())
        return Membership(epoch=self._epoch, dense=(), experts=members)

    def settle(self, held: Mapping[int, Sequence[int]]) -> None:
        self.exchange.peers.settle(self.name(held))

    def attach(self, peer: ScriptedPeer) -> ScriptedPeer:
        self.peers.append(peer)
        self.exchange.peers.attach(peer.index, "", peer.link)
        return peer

    def close(self) -> None:
        self.exchange.close()
        for peer in self.peers:
            peer.stop()


@contextmanager
def network(
    held: Mapping[int, Sequence[int]],
    acts: Mapping[int, Act] | None = None,
    late: float = 5.0,
    dead: float = 10.0,
    park: float = 10.0,
) -> Iterator[Network]:
    """A network with a linked peer for each index of `held`. Peers without an entry in `acts` answer."""
    made = Network(WaitLimits(late=late, dead=dead, park=park))
    try:
        made.settle(held)
        for index in held:
            made.attach(ScriptedPeer(index, (acts or {}).get(index, lambda number: "answer")))
        yield made
    finally:
        made.close()


class Case:
    """The rows of one dispatch, and the results that `local` gives for them."""

    def __init__(
        self,
        num_tokens: int,
        layer: int = 0,
        chosen: Sequence[int] = ALL,
        ids: torch.Tensor | None = None,
    ) -> None:
        """Routes are random among the `chosen` experts, or given as `ids` [T, 2]."""
        self.layer = layer
        self.rows = torch.randn(num_tokens, CONFIG.hidden_size)
        places = torch.rand(num_tokens, len(chosen)).argsort(dim=1)[:, :2]
        self.ids = torch.tensor(chosen)[places] if ids is None else ids
        self.weights = torch.rand(num_tokens, 2)
        local = LocalExchange(experts().forward)
        self.expected = local.combine(local.dispatch(layer, self.rows, self.ids, self.weights))

    def check(self, exchange: LinksExchange) -> float:
        """Send the rows and compare the results bit for bit; return the seconds that this took."""
        started_at = time.monotonic()
        handle = exchange.dispatch(self.layer, self.rows, self.ids, self.weights)
        assert torch.equal(exchange.combine(handle), self.expected)
        return time.monotonic() - started_at
