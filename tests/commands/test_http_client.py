"""Tests the client of the commands: where it sends a request, and how it reports an error."""

from __future__ import annotations

import asyncio
import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.commands.client_options import verification
from cluster.commands.http_client import HTTP_ERRORS, Reply, error_message, get, open_client, post, reason
from tests.support.local_ingress import make_certificate


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers /moved with a redirect, never answers /silent, and answers all else with the received body and
    key."""

    def do_GET(self) -> None:
        if self.path == "/silent":
            threading.Event().wait(1)
            return
        self.send_response(302 if self.path == "/moved" else 200)
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        answer = f"{self.path} {self.headers['Authorization']} ".encode() + body
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def _serving(certificate: Path | None = None, key: Path | None = None) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def echo() -> Iterator[str]:
    for address in _serving():
        yield f"http://{address}"


def ask(url: str, verify: ssl.SSLContext | bool = True, body: object = None) -> Reply | str:
    """Return the reply, or the reason why there is no reply."""

    async def run() -> Reply:
        async with open_client({"Authorization": "Bearer key"}, verify, read_seconds=0.3) as client:
            return await (get(client, url) if body is None else post(client, url, body))

    try:
        return asyncio.run(run())
    except HTTP_ERRORS as error:
        return reason(error)


def test_requests_carry_the_headers_and_a_json_body(echo: str) -> None:
    assert ask(f"{echo}/a") == Reply(status=200, body=b"/a Bearer key ")
    assert ask(f"{echo}/a", body={"b": 1}) == Reply(status=200, body=b'/a Bearer key {"b":1}')


def test_proxies_of_the_environment_are_ignored(echo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ask(f"{echo}/a") == Reply(status=200, body=b"/a Bearer key ")


def test_a_redirect_is_an_answer_and_the_key_goes_nowhere_else(echo: str) -> None:
    bodies: tuple[object, ...] = (None, {})
    for body in bodies:
        reply = ask(f"{echo}/moved", body=body)
        assert isinstance(reply, Reply) and reply.status == 302


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1/", "Connection refused"),
        ("127.0.0.1:8000", "this is not an HTTP address"),
        ("nonsense", "this is not an HTTP address"),
    ],
)
def test_why_a_server_cannot_be_asked_is_said_in_a_few_words(url: str, words: str) -> None:
    assert ask(url) == words


def test_silence_has_an_end(echo: str) -> None:
    assert ask(f"{echo}/silent") == "no answer in time"


def test_a_certificate_must_be_one_that_is_trusted(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    for address in _serving(certificate, key):
        assert "certificate verify failed" in str(ask(f"https://{address}/"))
        assert isinstance(ask(f"https://{address}/", verification(certificate)), Reply)
        assert isinstance(ask(f"https://{address}/", False), Reply)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "too long"}}', "too long"),
        (b'{"error": "no"}', '{"error": "no"}'),
        (b" gone \xff", "gone \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_message_of_an_error_is_found(body: bytes, words: str) -> None:
    assert error_message(body) == words
