"""Clients and operators use a service with keys, and with TLS on HTTP and gRPC, behind Serve's own proxy."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from protos import admin_pb2, admin_pb2_grpc, serving_pb2, serving_pb2_grpc
from tests.end_to_end.running import ROOT, Running, free_ports, serving
from tests.support.local_ingress import ADMIN_KEY, CLIENT_KEY, make_certificate, with_keys

pytestmark = pytest.mark.timeout(300)
BEARER = (("authorization", f"Bearer {CLIENT_KEY}"),)
HEADER_SECONDS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_certificate(folder)
    with_keys(folder)
    return folder


@pytest.fixture(scope="module")
def tls_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def closed(folder: Path, tls_port: int) -> Iterator[Running]:
    flags = {
        "--expert-actors": "1",
        "--api-keys-file": str(folder / "api-keys"),
        "--admin-keys-file": str(folder / "admin-keys"),
        "--tls-cert-file": str(folder / "cert.pem"),
        "--tls-key-file": str(folder / "key.pem"),
        "--grpc-tls-port": str(tls_port),
        "--header-timeout-seconds": str(HEADER_SECONDS),
        "--max-requests-per-key": "2",
    }
    with serving(folder, *(word for flag in flags.items() for word in flag)) as running:
        yield running


def client(folder: Path, closed: Running, key: str | None = CLIENT_KEY) -> httpx.Client:
    return httpx.Client(
        base_url=f"https://localhost:{closed.port}",
        headers={} if key is None else {"Authorization": f"Bearer {key}"},
        verify=ssl.create_default_context(cafile=str(folder / "cert.pem")),
        timeout=60,
        trust_env=False,
    )


@pytest.fixture
def channel(folder: Path, closed: Running, tls_port: int) -> Iterator[grpc.Channel]:
    credentials = grpc.ssl_channel_credentials((folder / "cert.pem").read_bytes())
    with grpc.secure_channel(f"localhost:{tls_port}", credentials) as channel:
        yield channel


def wait_until_idle(folder: Path, closed: Running) -> dict[str, int]:
    give_up = time.monotonic() + 15
    with client(folder, closed) as https:
        while True:
            load: dict[str, int] = https.get("/load").json()
            if load["running"] == load["waiting"] == load["server_load"] == 0 or time.monotonic() > give_up:
                return load
            time.sleep(0.1)


def test_https_answers_whoever_has_a_key(folder: Path, closed: Running) -> None:
    with client(folder, closed, None) as https:
        assert https.get("/health").status_code == 200
        refused = https.get("/v1/models")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    with client(folder, closed) as https:
        body = {"messages": [{"role": "user", "content": "Solve 2x + 3 = 7"}], "temperature": 0}
        answer = https.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == "x = 2"
        assert https.get("/admin/status").status_code == 403
    with client(folder, closed, ADMIN_KEY) as https:
        assert https.get("/admin/status").json()["model"] == "phimoe-tiny"


def test_plain_text_gets_through_neither_port(closed: Running, tls_port: int) -> None:
    with httpx.Client(trust_env=False, timeout=5) as http, pytest.raises(httpx.HTTPError):
        http.get(f"http://127.0.0.1:{closed.port}/health")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", closed.grpc_port)) != 0


def test_grpc_over_tls_gives_what_https_gives(folder: Path, closed: Running, channel: grpc.Channel) -> None:
    stub = serving_pb2_grpc.ServingStub(channel)
    request = serving_pb2.ChatRequest(
        messages=[serving_pb2.Message(role="user", content="Solve 2x + 3 = 7")],
        sampling=serving_pb2.SamplingParams(temperature=0),
    )
    text = "".join(response.text for response in stub.Chat(request, metadata=BEARER, timeout=60))
    assert text == "x = 2"
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Chat(request, timeout=60))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_places_of_a_key_are_bounded_over_http_and_grpc_together_and_returned(
    folder: Path, closed: Running, channel: grpc.Channel
) -> None:
    stub = serving_pb2_grpc.ServingStub(channel)
    sampling = serving_pb2.SamplingParams(max_tokens=1500, ignore_eos=True)
    request = serving_pb2.GenerateRequest(prompts=[serving_pb2.Prompt(text="Hello")], sampling=sampling)
    calls = [stub.Generate(request, metadata=BEARER) for _ in range(2)]
    for call in calls:
        next(call)
    with client(folder, closed) as https:
        crowded = https.post("/v1/completions", json={"prompt": "Hello"})
        assert (crowded.status_code, crowded.headers["retry-after"]) == (429, "1")
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.Generate(request, metadata=BEARER))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()
    load = wait_until_idle(folder, closed)
    assert load["running"] == load["waiting"] == 0 and load["free_blocks"] == load["total_blocks"]


def test_the_status_is_told_and_watched_over_grpc(channel: grpc.Channel) -> None:
    stub, metadata = admin_pb2_grpc.AdminStub(channel), (("authorization", f"Bearer {ADMIN_KEY}"),)
    status = stub.Status(admin_pb2.StatusRequest(), metadata=metadata, timeout=30)
    assert {actor.name for actor in status.actors} >= {"phimoe-dense-0", "phimoe-expert-0"}
    watch = stub.WatchStatus(
        admin_pb2.WatchStatusRequest(max_silence_seconds=1), metadata=metadata, timeout=30
    )
    assert [next(watch).epoch, next(watch).epoch] == [status.epoch] * 2
    watch.cancel()


def test_a_slow_header_is_given_up_over_tls(folder: Path, closed: Running) -> None:
    context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    with (
        socket.create_connection(("localhost", closed.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        began = time.monotonic()
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < HEADER_SECONDS + 5


def test_phimoe_status_takes_key_and_certificate_from_files(folder: Path, closed: Running) -> None:
    command = [sys.executable, "-m", "cluster", "status", "--url", f"https://localhost:{closed.port}"]
    trusted = [*command, "--ca-file", str(folder / "cert.pem")]
    environment = {**closed.environment, "PHIMOE_API_KEY": CLIENT_KEY}
    for words, variables, status in (
        (trusted, environment, 0),
        (trusted, closed.environment, 1),
        (command, environment, 1),
    ):
        done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr


def test_keys_are_in_no_process_arguments_and_in_no_log(closed: Running) -> None:
    keys = (CLIENT_KEY.encode(), ADMIN_KEY.encode())
    sessions: set[str] = set()
    for process in closed.descendants():
        arguments = b"\0".join(word.encode() for word in _arguments(process))
        assert not any(key in arguments for key in keys)
        sessions.update(
            word.partition("=")[2] for word in _arguments(process) if word.startswith("--session_dir=")
        )
    assert sessions
    files = [path for session in sessions for path in (Path(session) / "logs").rglob("*") if path.is_file()]
    assert files
    for path in [*files, closed.output]:
        content = path.read_bytes()
        assert not any(key in content for key in keys), path


@pytest.mark.slow
@pytest.mark.parametrize("proxy", ["haproxy", "python"])
def test_serves_own_ports_ask_for_the_keys_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("PHIMOE_API_KEYS", f"client:{CLIENT_KEY}")
    monkeypatch.setenv("PHIMOE_ADMIN_KEYS", f"operator:{ADMIN_KEY}")
    with serving(tmp_path, "--exchange", "local", "--proxy", proxy) as running:
        with running.client() as http:
            assert http.get("/health").status_code == 200
            assert http.get("/cluster").status_code == 401
            known = http.get("/cluster", headers={"Authorization": f"Bearer {CLIENT_KEY}"})
            assert known.status_code == 200
        with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as plain:
            stub, admin = serving_pb2_grpc.ServingStub(plain), admin_pb2_grpc.AdminStub(plain)
            request = serving_pb2.ModelInfoRequest()
            assert stub.ModelInfo(request, metadata=BEARER, timeout=30).is_ready
            refused: list[tuple[grpc.StatusCode, Callable[[], Any]]] = [
                (grpc.StatusCode.UNAUTHENTICATED, lambda: stub.ModelInfo(request, timeout=30)),
                (grpc.StatusCode.UNAUTHENTICATED, lambda: next(stub.Chat(serving_pb2.ChatRequest()))),
                (
                    grpc.StatusCode.PERMISSION_DENIED,
                    lambda: admin.Status(admin_pb2.StatusRequest(), metadata=BEARER, timeout=30),
                ),
            ]
            for code, call in refused:
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                assert caught.value.code() == code
            operator = (("authorization", f"Bearer {ADMIN_KEY}"),)
            assert (
                admin.Status(admin_pb2.StatusRequest(), metadata=operator, timeout=30).model == "phimoe-tiny"
            )


def _arguments(process: psutil.Process) -> list[str]:
    try:
        arguments: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return []
    return arguments


def test_a_changed_key_file_counts_without_a_restart(folder: Path, closed: Running) -> None:
    file, new_key = folder / "api-keys", "renewed-0123456789abcdef"
    kept = folder / "api-keys.old"
    shutil.copy(file, kept)
    (folder / "next").write_text(f"client:{new_key}\n")
    os.replace(folder / "next", file)
    try:
        time.sleep(1.5)
        with client(folder, closed) as old, client(folder, closed, new_key) as new:
            assert (old.get("/v1/models").status_code, new.get("/v1/models").status_code) == (401, 200)
            file.write_text("broken\n")
            time.sleep(1.5)
            assert new.get("/v1/models").status_code == 200
    finally:
        os.replace(kept, file)
        time.sleep(1.5)
