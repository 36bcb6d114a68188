"""Tests `phimoe scale`, `rebalance`, `restart`, `drain` and `status` with the real HTTP application."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn

from cluster.ingress.http.routes import http_app
from tests.end_to_end.running import ROOT
from tests.support.local_ingress import (
    ADMIN_KEY,
    CLIENT_KEY,
    OpenIngress,
    make_certificate,
    open_ingress,
    with_keys,
)


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[OpenIngress, str]]:
    async with open_ingress(with_keys(folder)) as ingress:
        app = http_app(ingress.service, ingress.authenticator)
        server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, ws="none"))
        serving = asyncio.create_task(server._serve())
        try:
            while not server.started:
                await asyncio.sleep(0.01)
            yield ingress, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


async def phimoe(*arguments: str, **variables: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cluster", *arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode(), errors.decode()


def test_an_operation_shows_what_changes_and_how_it_ended(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as (ingress, url):
            ingress.supervisor.pause_seconds = 2.5
            scaling = asyncio.create_task(
                phimoe("scale", "--expert-actors", "4", "--url", url, PHIMOE_ADMIN_KEY=ADMIN_KEY)
            )
            while not scaling.done():
                ingress.supervisor.epoch += 1
                await asyncio.sleep(0.2)
            status, output, errors = await scaling
            assert (status, errors) == (0, "")
            *progress, last = output.splitlines()
            assert len(progress) >= 1 and all("2 of 2 expert actors ready" in line for line in progress)
            assert last.startswith("scale is done: ") and "4 of 4 expert actors ready" in last

    asyncio.run(run())


def test_each_command_asks_for_its_operation(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as (ingress, url):
            key = ("--url", url, "--admin-key-file", str(tmp_path / "admin-keys"))
            for command in (("rebalance",), ("restart",), ("drain", "--grace-seconds", "3")):
                assert (await phimoe(*command, *key))[0] == 0
            assert ingress.supervisor.operations == ["rebalance", "restart", "drain 3"]
            file = str(tmp_path / "api-keys")
            assert (await phimoe("status", "--url", url, "--api-key-file", file))[0] == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("arguments", "key", "status", "words"),
    [
        pytest.param(("scale", "--expert-actors", "2"), None, 2, "there is no API key", id="no-key"),
        pytest.param(("restart",), CLIENT_KEY, 2, "this needs an admin key", id="client-key"),
        pytest.param(("scale", "--expert-actors", "99"), ADMIN_KEY, 2, "99 is outside [1, 16]", id="refused"),
        pytest.param(("status",), None, 1, "wants an API key", id="status-without-key"),
        pytest.param(("drain", "--admin-key-file", "/nowhere"), None, 2, "cannot read a key", id="no-file"),
        pytest.param(
            ("drain", "--ca-file", "/nowhere"), None, 2, "ca-file is '/nowhere'", id="no-certificates"
        ),
    ],
)
def test_a_command_that_fails_says_why(
    tmp_path: Path, arguments: tuple[str, ...], key: str | None, status: int, words: str
) -> None:
    async def run() -> None:
        async with served(tmp_path) as (ingress, url):
            variables = {} if key is None else {"PHIMOE_ADMIN_KEY": key}
            ended, output, errors = await phimoe(*arguments, "--url", url, **variables)
            assert ended == status and words in errors, errors
            assert not output and ingress.supervisor.operations == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("flags", "variables", "status", "words"),
    [
        pytest.param(("--api-keys-file", "/nowhere"), {}, 1, "cannot read keys from /nowhere", id="no-file"),
        pytest.param(
            (), {"PHIMOE_API_KEYS": "short"}, 1, "PHIMOE_API_KEYS: the key of entry 1", id="short-key"
        ),
        pytest.param(("--tls-cert-file", "c"), {}, 2, "tls_key_file is none", id="half-of-tls"),
        pytest.param(
            ("--tls-cert-file", "/nowhere", "--tls-key-file", "/nowhere"),
            {},
            1,
            "/nowhere",
            id="no-certificate",
        ),
    ],
)
def test_a_service_whose_doors_cannot_be_closed_does_not_start(
    flags: tuple[str, ...], variables: dict[str, str], status: int, words: str
) -> None:
    ended, _, errors = asyncio.run(phimoe("serve", *flags, **variables))
    assert ended == status and words in errors


def test_tls_is_not_silently_lost_to_haproxy(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    flags = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    ended, _, errors = asyncio.run(phimoe("serve", *flags, RAY_SERVE_ENABLE_HA_PROXY="1"))
    assert ended == 1 and "HAProxy without TLS" in errors


def test_a_service_that_is_not_there_and_one_that_breaks_are_told_apart(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as (ingress, url):
            ingress.supervisor.failure = RuntimeError("boom")
            broken = await phimoe("restart", "--url", url, PHIMOE_ADMIN_KEY=ADMIN_KEY)
        gone = await phimoe("restart", "--url", url, PHIMOE_ADMIN_KEY=ADMIN_KEY)
        assert broken[0] == gone[0] == 1
        assert "HTTP 500" in broken[2] and "cannot be reached" in gone[2]

    asyncio.run(run())
