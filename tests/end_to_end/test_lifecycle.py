"""The commands `phimoe serve`, `status` and `stop` leave nothing behind, and the next start works at once."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.running import ROOT, Running, environment, free_ports, serve_command, serving

pytestmark = pytest.mark.timeout(600)
OURS = re.compile(
    r"starting |phimoe-\S+: |ready after |  (HTTP|gRPC|state|log)  |curl |draining: |stopping$"
    r"|\d\d:\d\d:\d\d phimoe-"
)
"""The beginnings of the lines that `phimoe serve` itself writes."""
LOCAL = ("--exchange", "local", "--dtype", "float32")


def phimoe(running: Running, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=running.environment, capture_output=True, text=True, timeout=180, check=False
    )


def assert_nothing_is_left(running: Running, family: list[psutil.Process], shared_memory: set[str]) -> None:
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [process.name() for process in alive] == []
    for port in (running.port, running.grpc_port):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    assert {path.name for path in Path("/dev/shm").iterdir()} <= shared_memory
    assert list((running.home / "phimoe").glob("serve-*.json")) == []


@pytest.mark.parametrize(
    "way",
    [
        "stop",
        pytest.param("interrupt", marks=pytest.mark.slow),
        pytest.param("end-of-group", marks=pytest.mark.slow),
        pytest.param("killed", marks=pytest.mark.slow),
    ],
)
def test_everything_ends_and_a_new_start_works(tmp_path: Path, way: str) -> None:
    shared_memory = {path.name for path in Path("/dev/shm").iterdir()}
    with serving(tmp_path, *LOCAL) as running:
        family = [*running.descendants(), psutil.Process(running.process.pid)]
        assert len(family) > 5
        if way == "stop":
            ended = phimoe(running, "stop")
            assert ended.returncode == 0 and "is stopped" in ended.stdout
        elif way == "interrupt":
            running.process.send_signal(signal.SIGINT)
        elif way == "end-of-group":
            os.killpg(running.process.pid, signal.SIGTERM)
        else:
            running.process.kill()
        assert running.process.wait(90) == (-signal.SIGKILL if way == "killed" else 0)
        assert_nothing_is_left(running, family, shared_memory)
        shown = running.output.read_text().splitlines()
        assert [line for line in shown if not OURS.match(line)] == [], "noise on the terminal"
        log = running.home / "phimoe" / f"serve-{running.port}.log"
        assert f"  log    {log}" in shown and "Application 'phimoe' is ready" in log.read_text()


def test_status_shows_the_actors(service: Running) -> None:
    table = phimoe(service, "status")
    assert table.returncode == 0 and "epoch" in table.stdout
    view = json.loads(phimoe(service, "status", "--json").stdout)
    assert [actor["state"] for actor in view["actors"]] == ["ready"] * 4


def test_the_printed_curl_line_works(service: Running) -> None:
    line = next(line for line in service.output.read_text().splitlines() if line.startswith("curl "))
    answer = subprocess.run(
        ["bash", "-c", f"{line} -s"], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(["--exchange", "pigeon"], "exchange is 'pigeon'", id="wrong-value"),
        pytest.param(["/no/such/model"], "/no/such/model", id="no-model"),
    ],
)
def test_a_start_that_cannot_work_says_why(tmp_path: Path, flags: list[str], words: str) -> None:
    port, grpc_port = free_ports(2)
    command = serve_command(port, grpc_port, *flags)
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode in (1, 2)
    assert words in ended.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "cluster", "serve", "--port", str(port)]
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert f"port is {port}, which cannot be used" in ended.stderr


def test_status_without_a_service_fails(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "cluster", "status", "--url", f"http://127.0.0.1:{port}"]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1 and "does not answer" in ended.stderr
