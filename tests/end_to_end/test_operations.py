"""Scale, rebalance and rolling restart while streams run change no token."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.end_to_end.operate import SECONDS, command
from tests.end_to_end.running import ROOT, Running, serving
from tests.end_to_end.test_faults import actor, wait_until_ready

pytestmark = pytest.mark.timeout(400)
NUM_STREAMS = 3


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two dense actors, three expert actors, every expert twice."""
    flags = [
        "--expert-actors",
        "3",
        "--expert-replicas",
        "2",
        "--dense-actors",
        "2",
        "--redundant-slots",
        "1",
    ]
    with serving(tmp_path_factory.mktemp("replicated"), *flags, "--dtype", "float32") as running:
        yield running


class Streams:
    """Greedy and sampled streams that run one after another until the end of the block."""

    def __init__(self, service: Running) -> None:
        self._service = service
        self._is_over = threading.Event()
        self.results: list[tuple[int, list[int]]] = []
        self.longest_pause = 0.0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(NUM_STREAMS)]
        self.expected = [self._stream(seed, []) for seed in range(NUM_STREAMS)]
        self.longest_pause = 0.0

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(120)
        assert self.failures == []
        assert self.results and all(token_ids == self.expected[seed] for seed, token_ids in self.results)
        print(f"{len(self.results)} streams, the longest pause was {self.longest_pause:.2f} s")

    def _run(self, seed: int) -> None:
        while not self._is_over.is_set():
            token_ids: list[int] = []
            try:
                self._stream(seed, token_ids)
            except Exception as error:
                self.failures.append(repr(error))
                return
            self.results.append((seed, token_ids))

    def _stream(self, seed: int, token_ids: list[int]) -> list[int]:
        body: dict[str, Any] = {
            "prompt": f"Solve {seed + 2}x + 3 = 7",
            "max_tokens": 150,
            "temperature": float(seed > 0),
            "seed": seed,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }
        client = httpx.Client(base_url=self._service.url, timeout=120.0, trust_env=False)
        with client, client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            last = time.monotonic()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    assert "error" not in chunk, chunk
                    token_ids += chunk["choices"][0]["token_ids"]
                self.longest_pause = max(self.longest_pause, time.monotonic() - last)
                last = time.monotonic()
        return token_ids


def operate(service: Running, *arguments: str) -> str:
    """Return what the operation printed; it is empty if the operation succeeded."""
    ended = subprocess.run(
        command(service, *arguments),
        cwd=ROOT,
        env=service.environment,
        capture_output=True,
        text=True,
        timeout=SECONDS + 60,
        check=False,
    )
    return "" if ended.returncode == 0 else ended.stderr


def expert_counts(service: Running) -> list[int]:
    return [len(item["experts"]) for item in service.cluster()["actors"] if item["kind"] == "expert"]


def test_growing_and_shrinking_disturb_no_stream(replicated: Running) -> None:
    wait_until_ready(replicated)
    assert len(expert_counts(replicated)) == 3
    with Streams(replicated):
        assert operate(replicated, "scale", "4") == ""
        assert len(expert_counts(replicated)) == 4
        assert operate(replicated, "rebalance") == ""
        assert operate(replicated, "scale", "2") == ""
    assert expert_counts(replicated) == [16, 16]
    assert operate(replicated, "scale", "3") == ""
    assert all(item["state"] == "ready" for item in replicated.cluster()["actors"])


def test_what_cannot_be_done_is_refused(replicated: Running) -> None:
    assert "expert_actors is 1, expected 2 to 16" in operate(replicated, "scale", "1")


@pytest.mark.slow
def test_a_rolling_restart_disturbs_no_stream(replicated: Running) -> None:
    wait_until_ready(replicated)
    before = {item["name"]: item["pid"] for item in replicated.cluster()["actors"]}
    with Streams(replicated):
        assert operate(replicated, "restart") == ""
    after = {item["name"]: item["pid"] for item in replicated.cluster()["actors"]}
    assert {name for name, pid in after.items() if pid == before[name]} == {"phimoe-supervisor"}


@pytest.mark.slow
def test_a_new_supervisor_keeps_a_scaled_service(replicated: Running) -> None:
    wait_until_ready(replicated)
    assert operate(replicated, "scale", "4") == ""
    with Streams(replicated):
        pid = actor(replicated, "phimoe-supervisor")["pid"]
        os.kill(pid, signal.SIGKILL)
        os.kill(actor_pid(replicated, "phimoe-expert-3", pid), signal.SIGKILL)
        wait_until_ready(replicated)
    assert len(expert_counts(replicated)) == 4


def actor_pid(service: Running, name: str, former_supervisor: int) -> int:
    """Return an actor's pid, as the next supervisor reports it."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        with service.client() as client:
            response = client.get("/cluster")
        actors = response.json()["actors"] if response.status_code == 200 else []
        pids = {item["name"]: item["pid"] for item in actors}
        if pids.get("phimoe-supervisor", former_supervisor) != former_supervisor and pids.get(name):
            pid: int = pids[name]
            return pid
        time.sleep(0.1)
    raise AssertionError(f"no {name} after a new supervisor's start")
