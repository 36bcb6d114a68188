"""Tests what reaches the user's terminal and what goes to the log, with real descriptors in a process of its
own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.commands.local_service.terminal import LogError, last_lines, open_log
from tests.end_to_end.running import ROOT

NOISE = """
import os, subprocess, sys, warnings
from pathlib import Path
from cluster.commands.local_service.terminal import open_log, output_to

print("before", file=sys.stderr)
with open_log(Path(sys.argv[1])) as file, output_to(file) as terminal:
    print("noise: print")
    print("noise: sys.stderr", file=sys.stderr)
    warnings.warn("noise: a warning")
    os.write(2, b"noise: C++\\n")
    subprocess.run(["sh", "-c", "echo noise: a child; echo noise: another >&2"])
    held = subprocess.run(["sh", "-c", "ls -l /proc/self/fd"], capture_output=True, text=True).stdout
    terminal.console().print(f"words: {terminal.console().width}", highlight=False)
    print("a line", file=terminal.out)
    print(held.count("/dev/pts"), "descriptors of the terminal in a child", file=terminal.out)
print("after")
"""


def test_only_what_is_meant_for_the_user_reaches_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "deeper" / "serve-1.log"
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "63"], stdin=theirs, check=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", NOISE, str(log)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        timeout=60,
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode().split("\r\n")
    os.close(ours)
    assert shown[:5] == ["before", "words: 63", "a line", "0 descriptors of the terminal in a child", "after"]
    written = log.read_text()
    for kind in ("print", "sys.stderr", "a warning", "C++", "a child", "another"):
        assert f"noise: {kind}" in written
    assert not any(line.startswith(("words", "a line", "before", "after")) for line in written.splitlines())


def test_the_log_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "serve-1.log"
    for text in ("first", "second", "third"):
        with open_log(path) as file:
            print(text, file=file)
    assert last_lines(path, 1) == "third" and "second" not in path.read_text()
    assert "second" in (tmp_path / "serve-1.previous.log").read_text()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match=f"cannot write the log {tmp_path}/file/serve.log: File exists"):
        open_log(tmp_path / "file" / "serve.log")
    assert "No such file" in last_lines(tmp_path / "none.log", 3)


def test_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.log"
    path.write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert last_lines(path, 2) == "line 99998\nline 99999"
