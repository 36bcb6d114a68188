"""Dense and expert actors together, without Ray: the same tokens with every transport and every number of
expert actors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from actors.dense.actor import DenseActor
from actors.errors import StaleEpochError
from actors.expert.actor import ExpertActor
from actors.protocol.framing import encode_frame, read_frame
from actors.protocol.messages import (
    ActorReport,
    DenseMember,
    ExpertMember,
    Hello,
    Membership,
    StepOutput,
    Submit,
)
from actors.protocol.settings import DenseSettings, ExchangeSettings, ExpertSettings, ModelSource
from tests.dense.local_engine import greedy
from tests.dense.test_exact import greedy_reference, prompt
from tests.support.small_checkpoints import ORIGINAL_MAX

CHECKPOINT = "like-the-real-one"
NUM_EXPERTS = 16
NUM_LAYERS = 2
CASES = [(prompt(n, n), 8) for n in (1, 5, ORIGINAL_MAX - 4, ORIGINAL_MAX, ORIGINAL_MAX + 30)]
SETUPS = [
    pytest.param("local", "auto", 0, id="local"),
    *(pytest.param("links", "tcp", n, id=f"links-tcp-{n}") for n in (1, 2, 3, 5, 16)),
    *(pytest.param("links", "gloo", n, id=f"links-gloo-{n}") for n in (1, 2, 3, 5, 16)),
    *(pytest.param("all_to_all", "gloo", n, id=f"all-to-all-{n}") for n in (1, 2, 3, 5, 16)),
]


class Service:
    """One dense actor and its expert actors in this process, linked over real sockets."""

    def __init__(self, directory: Path, exchange: ExchangeSettings, num_expert_actors: int) -> None:
        source = ModelSource(model=str(directory))
        self.dense = DenseActor(
            DenseSettings(
                index=0,
                source=source,
                exchange=exchange,
                dtype="float32",
                max_num_sequences=8,
                max_batch_tokens=40,
                kv_cache_bytes=4 << 20,
                cluster_token="secret",
            )
        )
        bounds = [NUM_EXPERTS * i // max(1, num_expert_actors) for i in range(num_expert_actors + 1)]
        self.members = tuple(
            ExpertMember(index=index, experts=tuple(range(start, end)))
            for index, (start, end) in enumerate(pairwise(bounds))
        )
        self._source, self._exchange = source, exchange
        self.experts = [self._make_expert(member) for member in self.members]

    def _make_expert(self, member: ExpertMember) -> ExpertActor:
        return ExpertActor(
            ExpertSettings(
                index=member.index,
                experts=member.experts,
                source=self._source,
                exchange=self._exchange,
                dtype="float32",
            )
        )

    def replace_expert(self, index: int) -> None:
        """Replace a stopped actor by a new one that is loaded but not linked."""
        self.experts[index] = self._make_expert(self.members[index])
        self._load([self.experts[index]])

    @property
    def actors(self) -> list[DenseActor | ExpertActor]:
        return [self.dense, *self.experts]

    def start(self) -> None:
        self._load(self.actors)
        self.host, self.port, self.store_host, self.store_port = self.dense.listen()
        self.join(1)

    @staticmethod
    def _load(actors: Sequence[DenseActor | ExpertActor]) -> None:
        for actor in actors:
            actor.start_loading()
        deadline = time.monotonic() + 60
        for actor in actors:
            while (progress := actor.progress()).state != "loaded":
                assert progress.error is None and time.monotonic() < deadline
                time.sleep(0.01)
            assert 0 < progress.bytes_done == progress.bytes_total

    def join(self, epoch: int) -> None:
        member = DenseMember(
            index=0,
            store_host=self.store_host,
            store_port=self.store_port,
            incarnation=self.dense.incarnation,
        )
        experts = tuple(
            ExpertMember(index=member.index, experts=member.experts, incarnation=actor.incarnation)
            for member, actor in zip(self.members, self.experts, strict=True)
        )
        membership = Membership(epoch=epoch, dense=(member,), experts=experts)
        with ThreadPoolExecutor(1 + len(self.experts)) as pool:
            for done in [pool.submit(actor.join, membership) for actor in self.actors]:
                done.result(60)

    def stop(self) -> None:
        for actor in self.actors:
            actor.stop()

    async def generate(self, cases: list[tuple[list[int], int]]) -> list[list[int]]:
        """Tokens of all cases, run at once."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(encode_frame(Hello(token="secret")))
        for index, (prompt_ids, num_tokens) in enumerate(cases):
            submit = Submit(sequence_id=str(index), prompt_ids=prompt_ids, params=greedy(num_tokens))
            writer.write(encode_frame(submit))
        tokens: list[list[int]] = [[] for _ in cases]
        num_running = len(cases)
        while num_running:
            frame = await asyncio.wait_for(read_frame(reader), 60)
            for delta in frame.deltas if isinstance(frame, StepOutput) else []:
                tokens[int(delta.sequence_id)] += delta.token_ids
                assert delta.error is None
                num_running -= delta.finish_reason is not None
        writer.close()
        return tokens


def has_made_steps(count: int) -> Callable[[ActorReport], bool]:
    return lambda report: report.counters is not None and report.counters.steps > count


def wait_for(service: Service, is_so: Callable[[ActorReport], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so(service.dense.report()):
        assert time.monotonic() < deadline, service.dense.report()
        time.sleep(0.005)


@contextmanager
def running(directory: Path, transport: str, backend: str, num_expert_actors: int) -> Iterator[Service]:
    service = Service(directory, ExchangeSettings(transport=transport, backend=backend), num_expert_actors)
    try:
        service.start()
        yield service
    finally:
        service.stop()


@pytest.mark.parametrize(("transport", "backend", "num_expert_actors"), SETUPS)
def test_tokens_do_not_depend_on_transport_or_number_of_actors(
    small_checkpoints: dict[str, Path], transport: str, backend: str, num_expert_actors: int
) -> None:
    directory = small_checkpoints[CHECKPOINT]
    expected = [[token for token, _ in greedy_reference(directory, tuple(p), n)] for p, n in CASES]
    with running(directory, transport, backend, num_expert_actors) as service:
        assert asyncio.run(service.generate(CASES)) == expected
        report = service.dense.report()
    assert (report.state, report.epoch) == ("ready", 1)
    assert report.load is not None and report.load.free_blocks == report.load.total_blocks


@pytest.mark.parametrize(
    ("transport", "backend"), [("links", "tcp"), ("links", "gloo"), ("all_to_all", "gloo")]
)
def test_a_new_membership_takes_over_while_sequences_run(
    small_checkpoints: dict[str, Path], transport: str, backend: str
) -> None:
    directory = small_checkpoints[CHECKPOINT]
    cases = [(prompt(n, n), 40) for n in (3, 20, ORIGINAL_MAX)]
    expected = [[token for token, _ in greedy_reference(directory, tuple(p), n)] for p, n in cases]
    with running(directory, transport, backend, 2) as service, ThreadPoolExecutor(1) as pool:
        generated = pool.submit(asyncio.run, service.generate(cases))
        for epoch in (2, 3):
            service.join(epoch)
        assert generated.result(60) == expected
        with pytest.raises(StaleEpochError):
            service.join(3)
        assert service.dense.report().epoch == 3


def test_actors_that_end_and_come_back_cost_running_sequences_nothing_but_time(
    small_checkpoints: dict[str, Path],
) -> None:
    """One of two expert actors, whose experts have no replica, is replaced again and again while sequences
    run."""
    directory = small_checkpoints[CHECKPOINT]
    cases = [(prompt(n, n), 60) for n in (3, 20, ORIGINAL_MAX)]
    expected = [[token for token, _ in greedy_reference(directory, tuple(p), n)] for p, n in cases]
    with running(directory, "links", "tcp", 2) as service, ThreadPoolExecutor(1) as pool:
        steps_before = 0
        generated = pool.submit(asyncio.run, service.generate(cases))
        for epoch in range(2, 6):
            wait_for(service, has_made_steps(steps_before + 5))
            counters = service.dense.report().counters
            assert counters is not None
            steps_before = counters.steps
            service.experts[1].stop()
            wait_for(service, lambda report: report.state == "lost")
            assert service.dense.report().lost_links == ("expert-1",)
            assert not generated.done()
            service.replace_expert(1)
            service.join(epoch)
            assert service.dense.report().lost_links == ()
        assert generated.result(60) == expected
        report = service.dense.report()
        assert report.counters is not None and report.counters.failed_sequences == 0
        assert len(report.expert_load) == NUM_LAYERS
        assert len({sum(rows) for rows in report.expert_load}) == 1


def test_an_idle_dense_actor_notices_within_a_second_that_an_expert_actor_is_gone(
    small_checkpoints: dict[str, Path],
) -> None:
    with running(small_checkpoints[CHECKPOINT], "links", "tcp", 2) as service:
        service.experts[0].stop()
        wait_for(service, lambda report: report.lost_links == ("expert-0",), 1.0)
        wait_for(service, lambda report: report.state == "lost", 2.0)


def test_a_checkpoint_that_cannot_be_read_is_told_with_its_reason(tmp_path: Path) -> None:
    service = Service(tmp_path, ExchangeSettings(), 1)
    for actor in service.actors:
        actor.start_loading()
        deadline = time.monotonic() + 30
        while (progress := actor.progress()).state != "failed":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert progress.error is not None and "config.json" in progress.error
    service.stop()
