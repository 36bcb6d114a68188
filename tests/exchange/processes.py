"""Expert actors in processes of their own, for tests. Each process runs one actor after another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import torch

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.dummy.dummy_reader import DummyReader
from actors.checkpoint.dummy.presets import preset_config
from actors.exchange.context import DenseContext, ExchangeContext
from actors.exchange.expert_load import ExpertLoad
from actors.exchange.interface import Exchange
from actors.exchange.links.dense.endpoint import DenseLinks
from actors.exchange.rendezvous import host_store
from actors.exchange.transports import open_dense
from actors.expert.actor import ExpertActor
from actors.expert.experts import GroupedExperts
from actors.protocol.messages import ActorReport, DenseMember, ExpertMember, Membership, Progress
from actors.protocol.settings import ExchangeSettings, ExpertSettings, ModelSource

NODE_IP = "127.0.0.1"
PRESET = "tiny"
SOURCE = ModelSource(model=PRESET, load_format="dummy")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ANSWER_SECONDS = 60


def spread(num_actors: int) -> list[tuple[int, ...]]:
    """The 16 experts split over `num_actors` actors, contiguous and as even as possible."""
    bounds = [16 * actor // num_actors for actor in range(num_actors + 1)]
    return [tuple(range(start, end)) for start, end in pairwise(bounds)]


def load_all(dtype: torch.dtype) -> tuple[ModelConfig, GroupedExperts]:
    """The configuration and all experts of the model, in this process."""
    config = preset_config(PRESET)
    return config, GroupedExperts.load(DummyReader(config), config, range(16), dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Replace the actor by a new actor and load it; the answer is Loaded."""

    settings: ExpertSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """The answer to Load."""

    state: str
    incarnation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Join:
    """Join a membership; the answer is the error or None."""

    membership: Membership


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """Hold these experts as well; the answer is the final state, or the error."""

    experts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """Drop these experts; the answer is None."""

    experts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Ask for the actor's report, which is the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Stop the actor; the answer is None."""


Command: TypeAlias = Load | Join | Hold | Drop | Report | Stop


class ExpertProcess:
    """A process with one expert actor at a time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve_commands, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.incarnation = ""
        """The incarnation of the actor that was loaded last."""

    def send(self, command: Command) -> None:
        self._pipe.send(command)

    def answer(self) -> object:
        assert self._pipe.poll(_ANSWER_SECONDS), "the expert process does not answer"
        answer = self._pipe.recv()
        if isinstance(answer, Loaded):
            self.incarnation = answer.incarnation
            return answer.state
        return answer

    def ask(self, command: Command) -> object:
        self.send(command)
        return self.answer()

    def report(self) -> ActorReport:
        report = self.ask(Report())
        assert isinstance(report, ActorReport)
        return report

    def hold(self, experts: tuple[int, ...]) -> object:
        """Load experts as well; return the final state, or the error."""
        return self.ask(Hold(experts=experts))

    def drop(self, experts: tuple[int, ...]) -> None:
        assert self.ask(Drop(experts=experts)) is None

    def pause(self) -> None:
        """Stop the process; return when all of its threads stand still."""
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
    """Starts as many processes as a test asks for, and replaces dead ones."""

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


class DenseSide:
    """A dense actor's end of an exchange, without the actor."""

    def __init__(self, settings: ExchangeSettings, dtype: str, index: int = 0) -> None:
        self.index = index
        self.incarnation = uuid.uuid4().hex
        self.settings = settings
        self.context = context_of(settings, dtype)
        self.load = ExpertLoad(self.context.num_experts)
        self.store, host, port = host_store(NODE_IP)
        self.member = DenseMember(index=index, store_host=host, store_port=port, incarnation=self.incarnation)
        self._exchange: Exchange | None = None
        self._endpoint = open_dense(
            DenseContext(
                exchange_context=self.context,
                index=index,
                incarnation=self.incarnation,
                store=self.store,
                load=self.load,
                experts=None,
                use_exchange=self._use,
                on_change=lambda: None,
            )
        )
        self.links = self._endpoint if isinstance(self._endpoint, DenseLinks) else None

    @property
    def exchange(self) -> Exchange:
        assert self._exchange is not None
        return self._exchange

    def join(self, membership: Membership, stop: threading.Event | None = None) -> None:
        self._endpoint.join(membership, stop or threading.Event())

    def close(self) -> None:
        self._endpoint.close()
        if self._exchange is not None:
            self._exchange.close()

    def _use(self, exchange: Exchange) -> None:
        before, self._exchange = self._exchange, exchange
        if before is not None:
            before.close()


@dataclass(kw_only=True)
class Star:
    """Dense sides in this process, each linked to all expert actors."""

    dense: list[DenseSide]
    experts: list[ExpertProcess]
    membership: Membership
    settings: ExchangeSettings
    dtype: str
    next_epoch: Callable[[], int]

    @property
    def exchanges(self) -> list[Exchange]:
        return [side.exchange for side in self.dense]

    @property
    def exchange(self) -> Exchange:
        return self.exchanges[0]

    def load(self, place: int, experts: tuple[int, ...]) -> None:
        """Load a new actor in a process, as after a restart. It is not linked until the next `join`."""
        settings = expert_settings(self.settings, self.dtype, place, experts)
        assert self.experts[place].ask(Load(settings=settings)) == "loaded"

    def join(self, experts_of_actor: Sequence[tuple[int, ...]]) -> None:
        """Let all actors join a new membership at the same time.

        `experts_of_actor` has the experts of each process; a process without experts is left out.
        """
        self.membership = Membership(
            epoch=self.next_epoch(),
            dense=tuple(side.member for side in self.dense),
            experts=tuple(
                ExpertMember(index=index, experts=owned, incarnation=self.experts[index].incarnation)
                for index, owned in enumerate(experts_of_actor)
                if owned
            ),
        )
        members = [self.experts[member.index] for member in self.membership.experts]
        for process in members:
            process.send(Join(membership=self.membership))
        with ThreadPoolExecutor(len(self.dense)) as pool:
            list(pool.map(lambda side: side.join(self.membership), self.dense))
        for process in members:
            answer = process.answer()
            if isinstance(answer, Exception):
                raise answer


@contextmanager
def linked(
    processes: ExpertProcesses,
    settings: ExchangeSettings,
    dtype: str,
    experts_of_actor: Sequence[tuple[int, ...]],
    num_dense: int = 1,
) -> Iterator[Star]:
    """Load actors, bring their links up, and stop everything afterwards."""
    experts = processes.take(len(experts_of_actor))
    for index, (process, owned) in enumerate(zip(experts, experts_of_actor, strict=True)):
        process.send(Load(settings=expert_settings(settings, dtype, index, owned)))
    for process in experts:
        assert process.answer() == "loaded"
    star = Star(
        dense=[DenseSide(settings, dtype, index) for index in range(num_dense)],
        experts=list(experts),
        membership=Membership(epoch=0, dense=(), experts=()),
        settings=settings,
        dtype=dtype,
        next_epoch=processes.next_epoch,
    )
    try:
        star.join(experts_of_actor)
        yield star
    finally:
        for side in star.dense:
            side.close()
        for process in star.experts:
            if process.process.is_alive():
                process.resume()
                process.ask(Stop())


def expert_settings(
    settings: ExchangeSettings, dtype: str, index: int, experts: tuple[int, ...]
) -> ExpertSettings:
    """Settings of an expert actor on a CPU; with NCCL on a CUDA device.

    The first CUDA device belongs to the dense side, and expert actors use the others in turn.
    """
    device = "cpu"
    if settings.backend == "nccl":
        device = f"cuda:{1 + index % (torch.cuda.device_count() - 1)}"
    return ExpertSettings(
        index=index, experts=experts, source=SOURCE, exchange=settings, dtype=dtype, device=device
    )


def context_of(settings: ExchangeSettings, dtype: str) -> ExchangeContext:
    config = preset_config(PRESET)
    return ExchangeContext(
        settings=settings,
        node_ip=NODE_IP,
        hidden_size=config.hidden_size,
        num_experts=config.num_experts,
        num_choices=config.num_experts_per_token,
        dtype=DTYPES[dtype],
        device=torch.device("cuda" if settings.backend == "nccl" else "cpu"),
    )


def _state(task: Path) -> str:
    """The state letter of a thread. In the stat file it follows the name, which is in parentheses."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def _serve_commands(pipe: Connection) -> None:
    actor: ExpertActor | None = None
    while True:
        try:
            command = pipe.recv()
        except EOFError:
            return
        if isinstance(command, Load):
            actor = ExpertActor(_on_its_own_device(command.settings))
            actor.start_loading()
            progress = _settled(actor)
            pipe.send(Loaded(state=progress.error or progress.state, incarnation=actor.incarnation))
            continue
        assert actor is not None
        try:
            pipe.send(_carry_out(actor, command))
        except Exception as error:
            pipe.send(error)


def _on_its_own_device(settings: ExpertSettings) -> ExpertSettings:
    """Hide other devices from the actor, as a cluster does. A process keeps its first device."""
    if settings.device == "cpu":
        return settings
    os.environ["CUDA_VISIBLE_DEVICES"] = settings.device.removeprefix("cuda:")
    return replace(settings, device="cuda")


def _carry_out(actor: ExpertActor, command: Command) -> object:
    match command:
        case Join():
            actor.join(command.membership)
        case Hold():
            actor.hold(command.experts)
            progress = _settled(actor)
            return progress.error or progress.state
        case Drop():
            actor.drop(command.experts)
        case Report():
            return actor.report()
        case Stop():
            actor.stop()
        case Load():
            raise ValueError("the process has its actor already")
    return None


def _settled(actor: ExpertActor) -> Progress:
    while (progress := actor.progress()).state not in ("loaded", "failed"):
        time.sleep(0.005)
    return progress
