"""With two dense actors and two ingress replicas, one may die or hang: streams go on with the same tokens."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from tests.end_to_end.running import Running, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
NUM_STREAMS = 8


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    flags = ("--dense-actors", "2", "--ingress-replicas", "2", "--exchange", "local", "--dtype", "float32")
    with serving(tmp_path_factory.mktemp("pair"), *flags) as running:
        yield running


def stream(service: Running, seed: int, tokens: list[int] | None = None) -> list[int]:
    """Return the tokens of one stream. Raises an error if the stream fails."""
    tokens = [] if tokens is None else tokens
    body = {
        "prompt": "Solve 2x + 3 = 7",
        "max_tokens": 300,
        "temperature": 1.0,
        "seed": seed,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
    }
    last = ""
    with service.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            last = line or last
            if line.startswith("data: {"):
                frame = json.loads(line[6:])
                assert "error" not in frame, frame
                tokens += frame["choices"][0]["token_ids"]
    assert last == "data: [DONE]"
    return tokens


def streams_with(service: Running, action: Any) -> list[list[int]]:
    """Run many streams at once; `action` is called when all of them run."""
    tokens: list[list[int]] = [[] for _ in range(NUM_STREAMS)]
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        futures = [threads.submit(stream, service, seed, tokens[seed]) for seed in range(NUM_STREAMS)]
        while not all(tokens) and not any(future.done() for future in futures):
            time.sleep(0.01)
        action()
        return [future.result() for future in futures]


def pids(service: Running) -> dict[str, int]:
    return {actor["name"]: actor["pid"] for actor in service.cluster()["actors"]}


def wait_until_ready(service: Running, seconds: float = 60.0) -> None:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        states = [actor["state"] for actor in service.cluster()["actors"]]
        if states == ["ready"] * len(states):
            return
        time.sleep(0.1)
    raise AssertionError(f"not ready again: {service.cluster()}")


def wait_until_all_is_free(service: Running) -> None:
    load = service.wait_until_idle()
    assert load["running"] == load["waiting"] == 0 and load["free_blocks"] == load["total_blocks"]


def test_dense_actors_that_are_killed_one_by_one_fail_no_request(pair: Running) -> None:
    wait_until_ready(pair)
    expected = streams_with(pair, lambda: None)
    for name in ("phimoe-dense-0", "phimoe-dense-1"):
        before = pids(pair)[name]
        assert streams_with(pair, lambda pid=before: os.kill(pid, signal.SIGKILL)) == expected
        wait_until_ready(pair)
        assert pids(pair)[name] != before
    wait_until_all_is_free(pair)


def test_a_dense_actor_that_hangs_for_two_seconds_fails_no_request(pair: Running) -> None:
    wait_until_ready(pair)
    expected = streams_with(pair, lambda: None)
    pid = pids(pair)["phimoe-dense-0"]

    def go_on() -> None:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)

    waking = threading.Timer(2.0, go_on)

    def hang() -> None:
        os.kill(pid, signal.SIGSTOP)
        waking.start()

    try:
        assert streams_with(pair, hang) == expected
    finally:
        waking.join()
    wait_until_ready(pair)
    wait_until_all_is_free(pair)


def test_a_killed_ingress_replica_leaves_nothing_and_the_other_one_answers(pair: Running) -> None:
    wait_until_ready(pair)
    replicas = [process for process in pair.descendants() if "ServeReplica" in " ".join(process.cmdline())]
    assert len(replicas) == 2
    expected = [stream(pair, seed) for seed in range(NUM_STREAMS)]
    begun: list[list[int]] = [[] for _ in range(NUM_STREAMS)]
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        futures = [threads.submit(stream, pair, seed, begun[seed]) for seed in range(NUM_STREAMS)]
        while not all(begun) and not any(future.done() for future in futures):
            time.sleep(0.01)
        replicas[0].kill()
        ends: list[str] = []
        for seed, future in enumerate(futures):
            try:
                tokens = future.result()
            except (httpx.HTTPError, AssertionError):
                ends.append("cut")
            else:
                assert tokens == expected[seed]
                ends.append("whole")
    assert "whole" in ends
    assert stream(pair, 0) == expected[0]
    wait_until_all_is_free(pair)
