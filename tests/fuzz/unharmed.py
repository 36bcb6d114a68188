"""What must hold after any input: the same processes run, the next request is answered, nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.end_to_end.running import Running


@contextmanager
def unharmed(service: Running) -> Iterator[None]:
    """Check that the block's bad input neither ends a process nor leaves a sequence or a KV block behind."""
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
    """Return the processes of actors, Serve's included.

    Idle workers and former HAProxy processes are left out, since they may come and go.
    """
    found = set()
    for process in service.descendants():
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if title.startswith("ray::") and not title.startswith("ray::IDLE"):
            found.add(process.pid)
    return found
