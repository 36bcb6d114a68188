"""Actors are killed while streams run: the streams pause and go on with the same tokens."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import httpx
import pytest

from tests.end_to_end.running import Running

pytestmark = pytest.mark.timeout(300)
BODY = {
    "prompt": "Solve 2x + 3 = 7",
    "max_tokens": 300,
    "temperature": 1.0,
    "seed": 3,
    "ignore_eos": True,
    "return_token_ids": True,
}


def actor(service: Running, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in service.cluster()["actors"] if item["name"] == name)
    return found


def wait_until_ready(service: Running, seconds: float = 120.0) -> None:
    """Wait until the service answers and its supervisor, which serving does not need, is there as well."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        with service.client() as client:
            if all(client.get(path).status_code == 200 for path in ("/health", "/cluster")):
                return
        time.sleep(0.1)
    raise AssertionError(f"not ready again: {service.cluster()}")


@pytest.mark.parametrize("name", ["phimoe-expert-1", "phimoe-dense-0", "phimoe-supervisor"])
def test_a_stream_survives_the_death_of_an_actor(service: Running, name: str) -> None:
    wait_until_ready(service)
    before, epoch = actor(service, name), service.cluster()["epoch"]
    with service.client() as client:
        expected = client.post("/v1/completions", json=BODY).json()["choices"][0]["token_ids"]
    token_ids: list[int] = []
    is_killed = False
    client = httpx.Client(base_url=service.url, timeout=240.0, trust_env=False)
    with client, client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                token_ids += json.loads(line[6:])["choices"][0]["token_ids"]
            if len(token_ids) >= 20 and not is_killed:
                os.kill(before["pid"], signal.SIGKILL)
                is_killed = True
    assert is_killed and token_ids == expected
    wait_until_ready(service)
    after = actor(service, name)
    assert after["state"] == "ready" and after["pid"] != before["pid"]
    if name != "phimoe-supervisor":
        assert after["restarts"] == before["restarts"] + 1
        assert service.cluster()["epoch"] > epoch
    load = service.wait_until_idle()
    assert load["free_blocks"] == load["total_blocks"]


def test_health_is_503_while_a_dense_actor_is_away(service: Running) -> None:
    wait_until_ready(service)
    os.kill(actor(service, "phimoe-dense-0")["pid"], signal.SIGKILL)
    statuses = set()
    give_up = time.monotonic() + 30
    with service.client() as client:
        while 503 not in statuses and time.monotonic() < give_up:
            statuses.add(client.get("/health").status_code)
            time.sleep(0.02)
    assert 503 in statuses
    wait_until_ready(service)
