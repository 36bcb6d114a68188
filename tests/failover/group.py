"""Dense actors in processes that can be killed, stopped and restarted, and a supervisor that names them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cluster.config.cluster_config import ClusterConfig
from cluster.ingress.service import Service
from cluster.messages import ClusterView, DenseAddress, DenseAddresses
from cluster.openai.parsing.parse import parse_completion

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "secret"
START_SECONDS = 90.0


class DenseProcess:
    """One place for a dense actor."""

    def __init__(self, index: int, max_batch_tokens: int, max_drafts: int) -> None:
        self.index, self._sizes = index, (max_batch_tokens, max_drafts)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, death: tuple[int, int] | None = None) -> None:
        """Start a process. `death` is the step and the layer before which the process kills itself."""
        arguments = [str(self.index), TOKEN, *map(str, (*self._sizes, *(death or ())))]
        command = [sys.executable, "-m", "tests.failover.dense_process", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        reading = asyncio.to_thread(self._process.stdout.readline)
        _, self.port = json.loads(await asyncio.wait_for(reading, START_SECONDS))

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def is_dead(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def end(self) -> None:
        """Kill the process, even if it is stopped."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Group:
    """Several dense actors, and the supervisor as an ingress replica sees it."""

    def __init__(self, count: int, max_batch_tokens: int, max_drafts: int) -> None:
        self.processes = [DenseProcess(index, max_batch_tokens, max_drafts) for index in range(count)]
        self._addresses = DenseAddresses(version=0, token=TOKEN, dense=())
        self._changed = asyncio.Event()

    async def start(self) -> None:
        await asyncio.gather(*(process.start() for process in self.processes))
        self.tell()

    def tell(self, leaving: int | None = None, drain_seconds: float | None = None) -> None:
        """Make the present addresses known to ingress replicas."""
        self._addresses = DenseAddresses(
            version=self._addresses.version + 1,
            token=TOKEN,
            dense=tuple(
                DenseAddress(index=p.index, host="127.0.0.1", port=p.port, is_leaving=p.index == leaving)
                for p in self.processes
            ),
            drain_seconds=drain_seconds,
        )
        self._changed.set()
        self._changed = asyncio.Event()

    async def restart(self, index: int, death: tuple[int, int] | None = None) -> None:
        """Start a new process in the place; see `DenseProcess.start`."""
        self.processes[index].end()
        await self.processes[index].start(death)
        self.tell()

    async def addresses(
        self, known_version: int, wait_seconds: float, deadline_seconds: float
    ) -> DenseAddresses:
        if self._addresses.version <= known_version:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_seconds)
        return self._addresses

    async def view(self, deadline_seconds: float) -> ClusterView:
        return ClusterView(model="tiny", epoch=1, actors=())


@asynccontextmanager
async def serving(
    count: int, max_batch_tokens: int = 2048, max_drafts: int = 0, **keys: object
) -> AsyncIterator[tuple[Group, Service]]:
    """Run an ingress replica with `count` dense actors, all of them ready."""
    group = Group(count, max_batch_tokens, max_drafts)
    service: Service | None = None

    async def find() -> Group:
        return group

    try:
        await group.start()
        service = Service(ClusterConfig(dtype="float32", **keys), find)  # type: ignore[arg-type]
        service.start()
        async with asyncio.timeout(30):
            while not (service.is_ready and len(service.loads) == count):
                await asyncio.sleep(0.01)
        yield group, service
    finally:
        if service is not None:
            await service.close()
        for process in group.processes:
            process.end()


async def stream(service: Service, gaps: list[float] | None = None, **fields: object) -> list[int]:
    """Return the tokens of one completion. `gaps` takes the seconds between them."""
    body = {"prompt": "Solve 2x + 3 = 7", "ignore_eos": True, "return_token_ids": True, **fields}
    answer = await service.open(parse_completion(body, service.limits))
    loop = asyncio.get_running_loop()
    tokens: list[int] = []
    last = loop.time()
    async with contextlib.aclosing(service.pieces(answer)) as pieces:
        async for _, piece in pieces:
            tokens += piece.token_ids
            if gaps is not None:
                gaps.append(loop.time() - last)
            last = loop.time()
    return tokens


async def until_idle(service: Service, seconds: float) -> None:
    """Wait until every dense actor reports that it holds no sequence."""
    async with asyncio.timeout(seconds):
        while any(
            load.running or load.waiting or load.free_blocks < load.total_blocks or not load.total_blocks
            for load in service.loads
        ):
            await asyncio.sleep(0.02)
