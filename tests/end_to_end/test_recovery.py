"""Processes that hang are replaced, and what the supervisor has learnt outlives the supervisor."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import httpx
import pytest

from tests.end_to_end.running import Running
from tests.end_to_end.test_faults import BODY, actor, wait_until_ready

pytestmark = pytest.mark.timeout(300)


def wait_for(service: Running, name: str, **fields: Any) -> dict[str, Any]:
    """Wait until the actor is as described, and return it."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        with service.client() as client:
            response = client.get("/cluster")
        # While the supervisor is away, the service cannot tell.
        actors = response.json()["actors"] if response.status_code == 200 else []
        for found in actors:
            if found["name"] == name and all(found[key] == value for key, value in fields.items()):
                wanted: dict[str, Any] = found
                return wanted
        time.sleep(0.1)
    raise AssertionError(f"{name} is not {fields}: {service.cluster()}")


@pytest.mark.parametrize("name", ["phimoe-expert-1", "phimoe-dense-0"])
def test_a_stream_survives_an_actor_that_hangs(service: Running, name: str) -> None:
    wait_until_ready(service)
    before = actor(service, name)
    with service.client() as client:
        expected = client.post("/v1/completions", json=BODY).json()["choices"][0]["token_ids"]
    token_ids: list[int] = []
    is_stopped = False
    longest, last = 0.0, time.monotonic()
    client = httpx.Client(base_url=service.url, timeout=240.0, trust_env=False)
    with client, client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                token_ids += json.loads(line[6:])["choices"][0]["token_ids"]
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            if len(token_ids) >= 20 and not is_stopped:
                os.kill(before["pid"], signal.SIGSTOP)
                is_stopped = True
    assert is_stopped and token_ids == expected
    after = wait_for(service, name, state="ready", restarts=before["restarts"] + 1)
    assert after["pid"] != before["pid"] and not os.path.exists(f"/proc/{before['pid']}")
    print(f"{name}: the longest pause was {longest:.1f} s")


def test_restarts_are_counted_across_the_supervisors_own_death(service: Running) -> None:
    wait_until_ready(service)
    expert, supervisor = actor(service, "phimoe-expert-0"), actor(service, "phimoe-supervisor")
    os.kill(expert["pid"], signal.SIGKILL)
    counted = wait_for(service, "phimoe-expert-0", state="ready", restarts=expert["restarts"] + 1)
    epoch = service.cluster()["epoch"]
    os.kill(supervisor["pid"], signal.SIGKILL)
    os.kill(counted["pid"], signal.SIGKILL)
    after = wait_for(service, "phimoe-expert-0", state="ready", restarts=expert["restarts"] + 2)
    assert after["pid"] != counted["pid"]
    assert actor(service, "phimoe-supervisor")["pid"] != supervisor["pid"]
    wait_until_ready(service)
    assert service.cluster()["epoch"] > epoch
