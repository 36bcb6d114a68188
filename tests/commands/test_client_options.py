"""Tests how the commands find a service and which key they send."""

from __future__ import annotations

import argparse
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.commands import client_options
from cluster.commands.bench.command import add_arguments as add_bench_arguments
from cluster.commands.chat import add_arguments as add_chat_arguments
from tests.end_to_end.running import ROOT

KEY = "mine-0123456789abcdef"


def test_a_file_counts_more_than_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHIMOE_API_KEY", "from-the-environment")
    monkeypatch.delenv("PHIMOE_ADMIN_KEY", raising=False)
    file = tmp_path / "keys"
    file.write_text(f"# mine\nme: {KEY}  # here\nother:{KEY}x\n")
    assert client_options.api_headers(None) == {"Authorization": "Bearer from-the-environment"}
    assert client_options.api_headers(file) == {"Authorization": f"Bearer {KEY}"}
    assert client_options.admin_headers(None) == {}


@pytest.mark.parametrize("content", ["", "# nothing\n", "two words\n", "schlüssel\n"])
def test_a_file_without_a_key_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ValueError, match="key") as caught:
        client_options.api_headers(file)
    assert "words" not in str(caught.value) and "schl" not in str(caught.value)


def test_no_command_takes_a_key_as_an_argument() -> None:
    for add in (add_chat_arguments, add_bench_arguments):
        parser = argparse.ArgumentParser()
        add(parser)
        options = {option for action in parser._actions for option in action.option_strings}
        assert "--api-key-file" in options and "--api-key" not in options


class Noting(http.server.BaseHTTPRequestHandler):
    shown: list[str | None]

    def do_GET(self) -> None:
        self.shown.append(self.headers["Authorization"])
        self.send_error(503)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def noting(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str | None]]]:
    shown: list[str | None] = []
    monkeypatch.setattr(Noting, "shown", shown, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Noting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", shown
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("command", ["chat", "bench", "status"])
def test_each_command_shows_its_key(
    noting: tuple[str, list[str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    url, shown = noting
    file = tmp_path / "key"
    file.write_text(KEY)
    words = [sys.executable, "-m", "cluster", command, "--url", url]
    for flags, variables in (("--api-key-file", str(file)), {}), ((), {"PHIMOE_API_KEY": KEY}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        done = subprocess.run(
            [*words, *flags], cwd=ROOT, capture_output=True, input=b"", timeout=60, check=False
        )
        assert done.returncode == 1
    assert shown == [f"Bearer {KEY}"] * 2
