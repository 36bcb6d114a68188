"""Tests `phimoe chat` as its users run it: in a process of its own, with a real server."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.commands.bench.server import Behaviour, Running, serving

RUN = (
    "import argparse, signal, sys; from cluster.commands import chat; parser = argparse.ArgumentParser(); "
    # A process in the background ignores SIGINT by default.
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "chat.add_arguments(parser); sys.exit(chat.run(parser.parse_args(sys.argv[1:])))"
)
REPLY = ("Hello", ", ", "wörld")


def _talk(server: Running, text: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, "--url", server.url, *flags]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, input=text, capture_output=True, encoding="utf-8", timeout=60, env=environment, check=False
    )


def test_each_piped_line_is_a_message_and_only_replies_are_printed() -> None:
    with serving(Behaviour(words=REPLY)) as server:
        done = _talk(
            server, "one\n\ntwo\n", "--system", "be brief", "--temperature", "0.5", "--max-tokens", "9"
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, wörld\n" * 2, "")
    first, second = server.bodies
    system = {"role": "system", "content": "be brief"}
    asked = {"role": "user", "content": "one"}
    assert first["messages"] == [system, asked]
    assert second["messages"] == [
        system,
        asked,
        {"role": "assistant", "content": "Hello, wörld"},
        {"role": "user", "content": "two"},
    ]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("small", 0.5, 9)


def test_reset_forgets_all_but_the_system_message_and_exit_leaves() -> None:
    with serving(Behaviour(words=REPLY)) as server:
        done = _talk(server, "one\n/reset\ntwo\n/exit\nthree\n", "--system", "s", "--model", "named")
    assert done.returncode == 0
    assert [len(body["messages"]) for body in server.bodies] == [2, 2]
    assert server.bodies[1]["messages"][0]["role"] == "system"
    assert server.bodies[1]["model"] == "named"
    assert server.bodies[0]["temperature"] == 0 and "max_tokens" not in server.bodies[0]


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        pytest.param(Behaviour(fails=frozenset({0})), "HTTP 500: made to fail", id="refused"),
        pytest.param(Behaviour(breaks=frozenset({0})), "broke off", id="cut"),
        pytest.param(Behaviour(reports_error=frozenset({0})), "out of luck", id="error-event"),
    ],
)
def test_a_failure_ends_a_piped_conversation_with_status_1(behaviour: Behaviour, words: str) -> None:
    with serving(behaviour) as server:
        done = _talk(server, "one\ntwo\n")
    assert done.returncode == 1 and words in done.stderr
    assert len(server.bodies) == 1


def test_a_server_that_is_not_there_is_named() -> None:
    with serving() as server:
        pass
    done = _talk(server, "one\n")
    assert done.returncode == 1 and server.url in done.stderr and "Traceback" not in done.stderr


def test_interrupt_stops_a_reply_keeps_what_came_and_goes_on() -> None:
    words = ("begun ", *(f"{number} " for number in range(500)))
    with (
        serving(Behaviour(words=words, gap_seconds=0.05)) as server,
        _terminal(server) as (process, terminal),
    ):
        _read_until(terminal, "> ")
        os.write(terminal, b"one\n")
        _read_until(terminal, "begun")
        process.send_signal(signal.SIGINT)
        _read_until(terminal, "[stopped]")
        server.behaviour.words = ("second",)
        os.write(terminal, b"two\n")
        _read_until(terminal, "second")
        os.write(terminal, b"/exit\n")
        assert process.wait(timeout=20) == 0
    kept = server.bodies[1]["messages"][1]
    assert kept["role"] == "assistant" and kept["content"].startswith("begun ")
    assert len(kept["content"]) < len("".join(words)) / 2
    assert server.bodies[1]["messages"][2] == {"role": "user", "content": "two"}


def test_interrupt_at_the_prompt_and_a_failed_reply_do_not_end_a_terminal_conversation() -> None:
    with (
        serving(Behaviour(words=REPLY, fails=frozenset({0}))) as server,
        _terminal(server) as (process, terminal),
    ):
        _read_until(terminal, "> ")
        time.sleep(0.5)  # from the prompt's bytes to the wait for input, which is what a user interrupts
        process.send_signal(signal.SIGINT)
        _read_until(terminal, "/exit leaves")
        os.write(terminal, b"one\n")
        _read_until(terminal, "made to fail")
        os.write(terminal, b"two\n")
        _read_until(terminal, "Hello")
        _end_input(terminal, process)
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "two"}], "the failed turn was kept"


def _end_input(terminal: int, process: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-D until it has an effect: between two prompts it is lost."""
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        os.write(terminal, b"\x04")
        time.sleep(0.2)
    assert process.wait(timeout=1) == 0


@contextmanager
def _terminal(server: Running) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", RUN, "--url", server.url]
    environment = {**os.environ, "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read_until(terminal: int, words: str) -> None:
    seen, deadline = "", time.monotonic() + 30
    while words not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{words!r} did not come, only {seen!r}"
        seen += os.read(terminal, 4096).decode("utf-8", "replace")
