"""Deploys the cpu overlay's application on a real Ray cluster."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.k8s.manifests import ROOT, of_kind, render, serve_config


@pytest.mark.timeout(300)
def test_the_cpu_overlays_serve_config_deploys_as_it_stands_and_answers(tmp_path: Path) -> None:
    objects = render("cpu")
    path = tmp_path / "serve.yaml"
    path.write_text(of_kind(objects, "RayService")["spec"]["serveConfigV2"], encoding="utf-8")
    config = serve_config(objects)
    for port in (config["http_options"]["port"], config["grpc_options"]["port"]):
        _wait_until_free(port)
    environment = {
        **os.environ,
        **of_kind(objects, "ConfigMap")["data"],
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": str(ROOT),
    }
    answer_path = tmp_path / "answer.json"
    command = [sys.executable, "-m", "tests.k8s.deploy", str(path), str(answer_path)]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            process.wait(timeout=240)
        finally:
            _end(process)
        log.seek(0)
        assert process.returncode == 0, log.read()[-4000:]
    answer = json.loads(answer_path.read_text(encoding="utf-8"))
    assert answer["choices"][0]["message"]["content"].strip() == "x = 2"
    assert answer["choices"][0]["finish_reason"] == "stop"


def _wait_until_free(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
                return
            except OSError:
                assert time.monotonic() < deadline, f"port {port}, which the overlay names, is taken"
        time.sleep(0.5)


def _end(process: subprocess.Popen[str]) -> None:
    """End the process; if it does not shut down by itself, kill its process group."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
