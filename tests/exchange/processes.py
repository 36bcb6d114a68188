"""Expert actors in processes of their own, for tests: one set of processes takes one actor after another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch._C._distributed_c10d import Store

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.dummy import DummyReader
from actors.checkpoint.presets import preset_config
from actors.exchange.interface import Exchange
from actors.exchange.open import Site, open_dense
from actors.exchange.rendezvous import host_store
from actors.expert.actor import ExpertActor
from actors.expert.experts import GroupedExperts
from actors.messages import ActorReport, DenseMember, ExpertMember, Membership
from actors.settings import ExchangeSettings, ExpertSettings, ModelSource

NODE_IP = "127.0.0.1"
PRESET = "tiny"
SOURCE = ModelSource(model=PRESET, load_format="dummy")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ANSWER_SECONDS = 60


def spread(num_actors: int) -> list[tuple[int, ...]]:
    """16 experts over so many actors, contiguous, as even as possible."""
    bounds = [16 * actor // num_actors for actor in range(num_actors + 1)]
    return [tuple(range(start, end)) for start, end in pairwise(bounds)]


def load_all(dtype: torch.dtype) -> tuple[ModelConfig, GroupedExperts]:
    """The model that the processes hold parts of, all of it in this process."""
    config = preset_config(PRESET)
    return config, GroupedExperts.load(DummyReader(config), config, range(16), dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Make an actor in place of the one before and load it."""

    settings: ExpertSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Join:
    """Join a membership; the answer is the error or None."""

    membership: Membership


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Answer with the actor's report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Stop the actor."""


class ExpertProcess:
    """A process with one expert actor at a time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve_commands, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, command: Load | Join | Report | Stop) -> None:
        self._pipe.send(command)

    def answer(self) -> object:
        assert self._pipe.poll(_ANSWER_SECONDS), "the expert process does not answer"
        return self._pipe.recv()

    def ask(self, command: Load | Join | Report | Stop) -> object:
        self.send(command)
        return self.answer()

    def report(self) -> ActorReport:
        report = self.ask(Report())
        assert isinstance(report, ActorReport)
        return report

    def pause(self) -> None:
        """Stop the process; returns when each of its threads stands still."""
        self._signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        while any(_state(task) != "T" for task in tasks.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self._pipe.close()


@dataclass
class ExpertProcesses:
    """As many processes as a test asks for; dead ones are replaced."""

    _processes: list[ExpertProcess] = field(default_factory=list)
    _epoch: int = 0

    def take(self, count: int) -> list[ExpertProcess]:
        for place, process in enumerate(self._processes):
            if not process.process.is_alive():
                self._processes[place] = ExpertProcess()
        while len(self._processes) < count:
            self._processes.append(ExpertProcess())
        return self._processes[:count]

    def next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def close(self) -> None:
        for process in self._processes:
            process.kill()


@dataclass(frozen=True, kw_only=True)
class Star:
    """Dense sides in this process, each linked to all expert actors."""

    exchanges: list[Exchange]
    experts: list[ExpertProcess]
    membership: Membership

    @property
    def exchange(self) -> Exchange:
        return self.exchanges[0]


@contextmanager
def linked(
    processes: ExpertProcesses,
    settings: ExchangeSettings,
    dtype: str,
    experts_of_actor: Sequence[tuple[int, ...]],
    num_dense: int = 1,
) -> Iterator[Star]:
    """Load actors, bring their links up, and end all of it afterwards."""
    experts = processes.take(len(experts_of_actor))
    for index, (process, owned) in enumerate(zip(experts, experts_of_actor, strict=True)):
        process.send(
            Load(
                settings=ExpertSettings(
                    index=index, experts=owned, source=SOURCE, exchange=settings, dtype=dtype
                )
            )
        )
    for process in experts:
        assert process.answer() == "loaded"
    stores = [host_store(NODE_IP) for _ in range(num_dense)]
    membership = Membership(
        epoch=processes.next_epoch(),
        dense=tuple(
            DenseMember(index=index, store_host=host, store_port=port)
            for index, (_, host, port) in enumerate(stores)
        ),
        experts=tuple(
            ExpertMember(index=index, experts=owned) for index, owned in enumerate(experts_of_actor)
        ),
    )
    for process in experts:
        process.send(Join(membership=membership))
    exchanges = _open_all(site_of(settings, dtype), membership, [store for store, _, _ in stores])
    for process in experts:
        assert process.answer() is None
    try:
        yield Star(exchanges=exchanges, experts=experts, membership=membership)
    finally:
        for exchange in exchanges:
            exchange.close()
        for process in experts:
            if process.process.is_alive():
                process.resume()
                process.ask(Stop())


def site_of(settings: ExchangeSettings, dtype: str) -> Site:
    config = preset_config(PRESET)
    return Site(
        settings=settings,
        node_ip=NODE_IP,
        hidden_size=config.hidden_size,
        num_experts=config.num_experts,
        num_choices=config.num_experts_per_token,
        dtype=DTYPES[dtype],
        device=torch.device("cpu"),
        stop=threading.Event(),
    )


def _open_all(site: Site, membership: Membership, stores: Sequence[Store]) -> list[Exchange]:
    """Dense sides come up at the same time, as they would in processes of their own."""
    opened: dict[int, Exchange] = {}

    def open_one(index: int) -> None:
        own = replace(site, stop=threading.Event())
        opened[index] = open_dense(own, membership.dense[index], membership, stores[index])

    threads = [threading.Thread(target=open_one, args=(index,)) for index in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [opened[index] for index in range(len(stores))]


def _state(task: Path) -> str:
    """A thread's state letter; it follows the name, which is in parentheses."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def _serve_commands(pipe: Connection) -> None:
    actor: ExpertActor | None = None
    while True:
        try:
            command = pipe.recv()
        except EOFError:
            return
        if isinstance(command, Load):
            actor = ExpertActor(command.settings)
            actor.start_loading()
            while (progress := actor.progress()).state not in ("loaded", "failed"):
                time.sleep(0.005)
            pipe.send(progress.error or progress.state)
            continue
        assert actor is not None
        if isinstance(command, Join):
            try:
                actor.join(command.membership)
                pipe.send(None)
            except Exception as error:
                pipe.send(error)
        elif isinstance(command, Report):
            pipe.send(actor.report())
        else:
            actor.stop()
            pipe.send(None)
