"""Kernels that serve alone answer as the interpreter does, and stop where the interpreter must decide."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from actors.errors import LinkError
from actors.exchange.interface import NotHeldError
from actors.exchange.links.backends.tcp_link import TcpLink
from actors.exchange.links.expert.server import LinkServer
from actors.exchange.message import MAGIC, NOT_HELD, RESULTS, ROWS, Header, Message
from actors.expert.kernel_tables import serve_tables
from actors.kernels.library import load
from actors.kernels.serve import ServeTables
from tests.exchange.peers import CONFIG, FORMAT, experts, wait_for
from tests.exchange.tcp_ends import served_ends

pytestmark = pytest.mark.skipif(load() is None, reason="there are no kernels for this processor")
_SECONDS = 10.0


class Interpreter:
    """Computes like the kernels, and counts its calls."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.held = frozenset(range(CONFIG.num_experts))
        self.expert_rows = np.zeros(CONFIG.num_experts, dtype=np.int64)
        self.tables = serve_tables(experts(), self.expert_rows)

    def __call__(
        self, layer: int, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, num_results: int
    ) -> torch.Tensor:
        self.num_calls += 1
        lacking = sorted(set(ids.reshape(-1).tolist()) - self.held - {-1})
        if lacking:
            raise NotHeldError(lacking)
        return experts().forward(layer, rows, ids, weights, num_results)

    def give_tables(self) -> ServeTables | None:
        return self.tables


@contextmanager
def serving(interpreter: Interpreter, num_links: int = 1) -> Iterator[tuple[LinkServer, list[TcpLink]]]:
    """A server, and the dense ends of its links."""
    server = LinkServer(interpreter, _SECONDS, interpreter.give_tables)
    with served_ends(server, num_links, FORMAT, _SECONDS) as dense:
        time.sleep(0.1)  # By then the server has adopted the links, and its kernels wait on all of them.
        yield server, dense


class Question:
    """Rows for one layer, and the right answer."""

    def __init__(self, seed: int, num_tokens: int, layer: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.rand(num_tokens, CONFIG.num_experts, generator=generator).argsort(dim=1)[:, :2]
        ids[torch.rand(num_tokens, 2, generator=generator) < 0.3] = -1
        ids[0, 0] = seed % CONFIG.num_experts
        self.ids, self.layer, self.sequence = ids, layer, seed
        self.weights = torch.rand(num_tokens, 2, generator=generator)
        self.rows = torch.randn(num_tokens, CONFIG.hidden_size, generator=generator)
        self.num_results = int((ids >= 0).sum())

    @property
    def answer(self) -> torch.Tensor:
        return experts().forward(self.layer, self.rows, self.ids, self.weights, self.num_results)

    def write(self, message: Message, epoch: int = 1) -> Message:
        header = Header(MAGIC, ROWS, epoch, self.sequence, self.layer, len(self.rows), self.num_results, 0)
        message.write_rows(header, self.ids.numpy(), self.weights.numpy()).copy_(self.rows)
        return message

    def ask(self, link: TcpLink, epoch: int = 1) -> None:
        link.send(self.write(link.outgoing(), epoch))

    def check(self, message: Message) -> None:
        header = message.header
        assert (header.kind, header.epoch, header.sequence, header.layer) == (
            RESULTS,
            1,
            self.sequence,
            self.layer,
        )
        assert torch.equal(message.payload(), self.answer)


def some_question(seed: int) -> Question:
    return Question(seed, (1, 2, 7, 40, 400)[seed % 5], seed % CONFIG.num_layers)


def test_the_kernels_answer_alone_bit_for_bit_and_count_what_they_did() -> None:
    interpreter = Interpreter()
    asked = np.zeros(CONFIG.num_experts, dtype=np.int64)
    with serving(interpreter) as (_, (link,)):
        for seed in range(60):
            question = some_question(seed)
            question.ask(link)
            question.check(wait_for(link))
            asked += np.bincount(question.ids.reshape(-1) + 1, minlength=CONFIG.num_experts + 1)[1:]
    assert interpreter.num_calls == 0
    assert np.array_equal(interpreter.expert_rows, asked)


def test_a_message_that_comes_in_pieces_is_answered_when_it_is_whole() -> None:
    interpreter = Interpreter()
    with serving(interpreter) as (server, (link,)):
        for seed, pauses in enumerate(((3,), (64,), (10, 64, 100), (63, 65, 2000))):
            question = some_question(seed)
            data = bytes(question.write(Message(FORMAT)).host_view)[
                : question.write(Message(FORMAT)).header.num_bytes
            ]
            before = 0
            for end in (*(min(pause, len(data) - 1) for pause in pauses), len(data)):
                link._socket.sendall(data[before:end])
                before = end
                time.sleep(0.02)
                server.wake()  # The kernels return the incomplete message to the interpreter.
                time.sleep(0.02)
            question.check(wait_for(link))


def test_an_expert_that_is_not_held_is_refused_by_name_and_the_next_question_answered() -> None:
    interpreter = Interpreter()
    interpreter.held -= {5}
    full = interpreter.tables
    assert full is not None
    slots = np.array([-2 if expert == 5 else expert for expert in range(CONFIG.num_experts)] + [-1])
    for layer in full.layers:
        layer.slots = slots.ctypes.data
    with serving(interpreter) as (_, (link,)):
        for seed in (5, 6):
            question = Question(seed, 1, 0)
            question.ids[0] = torch.tensor([seed, -1])
            question.num_results = 1
            question.ask(link)
            message = wait_for(link)
            if seed == 5:
                assert (message.header.kind, message.failure()) == (NOT_HELD, "5")
            else:
                question.check(message)
    assert interpreter.num_calls == 1


def test_an_id_that_no_expert_has_reaches_no_kernel() -> None:
    interpreter = Interpreter()
    with serving(interpreter) as (_, (link,)):
        question = Question(1, 1, 0)
        question.ids[0] = torch.tensor([CONFIG.num_experts + 40, -1])
        question.num_results = 1
        question.ask(link)
        assert wait_for(link).header.kind != RESULTS
        good = some_question(3)
        good.ask(link)
        good.check(wait_for(link))


def test_an_answer_that_is_not_taken_waits_and_comes_whole() -> None:
    interpreter = Interpreter()
    with serving(interpreter) as (_, (link,)):
        questions = [Question(seed, 4096, seed % CONFIG.num_layers) for seed in range(6)]
        for question in questions:
            question.ask(link)
        time.sleep(0.5)
        for question in questions:
            question.check(wait_for(link))
        small = some_question(1)
        small.ask(link)
        small.check(wait_for(link))


def test_links_that_speak_at_once_all_get_their_own_answers() -> None:
    interpreter = Interpreter()
    with serving(interpreter, 3) as (_, links):
        for repeat in range(30):
            questions = [Question(3 * repeat + index, 1 + 5 * index, repeat % 2) for index in range(3)]
            for question, link in zip(questions, links, strict=True):
                question.ask(link)
            for question, link in zip(questions, links, strict=True):
                question.check(wait_for(link))


def test_what_is_stale_is_dropped_and_what_is_no_message_ends_the_link_alone() -> None:
    interpreter = Interpreter()
    with serving(interpreter, 2) as (_, (bad, good)):
        some_question(0).ask(bad, epoch=7)
        question = some_question(1)
        question.ask(bad)
        question.check(wait_for(bad))
        bad._socket.sendall(b"GET / HTTP/1.1\r\nHost: expert\r\n\r\n" + bytes(64))
        with pytest.raises(LinkError, match="closed"):
            wait_for(bad)
        question = some_question(2)
        question.ask(good)
        question.check(wait_for(good))


def test_new_tables_are_used_after_a_wake_and_without_tables_the_interpreter_serves() -> None:
    interpreter = Interpreter()
    kept = interpreter.tables
    with serving(interpreter) as (server, (link,)):
        for seed, (tables, num_calls) in enumerate(((None, 1), (kept, 1), (None, 2), (kept, 2))):
            interpreter.tables = tables
            server.wake()
            time.sleep(0.1)
            question = some_question(seed)
            question.ask(link)
            question.check(wait_for(link))
            assert interpreter.num_calls == num_calls
