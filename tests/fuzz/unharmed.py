"""What has to hold after any input: the same processes, an answer to the next question, nothing kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.end_to_end.running import Running


@contextmanager
def unharmed(service: Running) -> Iterator[None]:
    """A block of bad input that must neither end a process nor leave a sequence or a KV block behind."""
    processes = _ray_actors(service)
    actors = {actor["name"]: (actor["pid"], actor["restarts"]) for actor in service.cluster()["actors"]}
    yield
    load = service.wait_until_idle()
    assert load["running"] == load["waiting"] == load["server_load"] == 0, load
    assert load["free_blocks"] == load["total_blocks"], load
    assert {
        actor["name"]: (actor["pid"], actor["restarts"]) for actor in service.cluster()["actors"]
    } == actors
    assert processes and processes <= {process.pid for process in service.descendants()}
    with service.client() as client:
        body = {"prompt": "Solve 2x + 3 = 7", "max_tokens": 2}
        assert client.post("/v1/completions", json=body).status_code == 200


def _ray_actors(service: Running) -> set[int]:
    """Processes of actors, those of Serve among them; idle workers and HAProxy's former selves may come and go."""
    found = set()
    for process in service.descendants():
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if title.startswith("ray::") and not title.startswith("ray::IDLE"):
            found.add(process.pid)
    return found
