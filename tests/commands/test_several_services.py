"""Tests how the commands choose among the services that run on this host."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.commands.local_service.run_state import RunState, running_states, write_state

MODELS = ("a-model-with-a-rather-long-name-that-no-terminal-has-room-for", "phimoe-tiny", "third")
ASKING = (
    ("status",),
    ("chat",),
    ("bench",),
    ("scale", "--expert-actors", "3"),
    ("rebalance",),
    ("restart",),
    ("drain",),
)


@contextlib.contextmanager
def services(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that have the state files of services, on the ports from 21 on. Nothing listens there."""
    words = [sys.executable, "-c", "import time; time.sleep(100)"]
    processes = [subprocess.Popen(words) for _ in range(count)]
    try:
        for index, process in enumerate(processes):
            write_state(process.pid, f"http://127.0.0.1:{21 + index}", 21 + index, MODELS[index])
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "phimoe"


def reap(processes: list[subprocess.Popen[bytes]], count: int) -> list[bool]:
    """Wait until `count` processes have ended; return for each process whether it has. `phimoe stop` sees
    that a process has ended only after its parent has waited for it."""
    give_up = time.monotonic() + 20
    while sum(process.poll() is not None for process in processes) < count and time.monotonic() < give_up:
        time.sleep(0.02)
    return [process.poll() is not None for process in processes]


@pytest.mark.parametrize("command", ASKING, ids=lambda command: command[0])
def test_with_several_services_a_command_lists_them_and_asks_for_one(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    today = time.strftime("%Y-%m-%d")
    with services(3) as processes:
        assert main(command) != 0
        shown = capsys.readouterr()
        assert not shown.out
        first, heading, *lines = shown.err.splitlines()
        assert first == f"phimoe {command[0]}: 3 services run on this host, choose with --url:"
        assert heading.split() == ["url", "pid", "since", "model"]
        for index, (line, process) in enumerate(zip(lines, processes, strict=True)):
            url, pid, date, _, model = line.split()
            assert (url, int(pid), model) == (f"http://127.0.0.1:{21 + index}", process.pid, MODELS[index])
            assert date >= today
        assert reap(processes, 0) == [False] * 3


@pytest.mark.parametrize("command", ASKING, ids=lambda command: command[0])
def test_one_service_is_found_and_a_url_chooses_among_several(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    with services(1):
        assert main(command) == 1
        assert "http://127.0.0.1:21" in capsys.readouterr().err
    with services(3):
        assert main([*command, "--url", "http://127.0.0.1:22/v1"]) == 1
        assert "http://127.0.0.1:22" in capsys.readouterr().err


def test_stop_with_several_services_lists_them_and_stops_none(capsys: pytest.CaptureFixture[str]) -> None:
    with services(2) as processes:
        assert main(["stop"]) == 2
        shown = capsys.readouterr().err
        assert "2 services run on this host, choose with --url or --all" in shown
        assert all(str(process.pid) in shown for process in processes)
        time.sleep(0.2)
        assert reap(processes, 0) == [False, False]


@pytest.mark.parametrize(
    ("flags", "ended"),
    [
        pytest.param(["--url", "http://127.0.0.1:22/v1/"], [False, True, False], id="url"),
        pytest.param(["--url", "http://localhost:22"], [False, True, False], id="localhost"),
        pytest.param(["--port", "23"], [False, False, True], id="port"),
        pytest.param(["--all"], [True, True, True], id="all"),
        pytest.param(["--url", "http://127.0.0.1:99"], [False, False, False], id="none"),
    ],
)
def test_stop_ends_the_chosen_services(
    capsys: pytest.CaptureFixture[str], flags: list[str], ended: list[bool]
) -> None:
    with services(3) as processes:
        assert main(["stop", *flags]) == 0
        shown = capsys.readouterr().out
        assert reap(processes, sum(ended)) == ended
        assert shown.count("is stopped") == sum(ended)
        assert ("no service is running at http://127.0.0.1:99" in shown) == (not any(ended))


def test_the_only_service_is_stopped_without_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with services(1) as processes:
        assert main(["stop"]) == 0
        assert reap(processes, 1) == [True]
    assert "http://127.0.0.1:21 is stopped" in capsys.readouterr().out
    assert main(["stop"]) == 0
    assert capsys.readouterr().out == "no service is running\n"


def test_state_files_of_processes_that_are_gone_and_unreadable_ones_are_removed(home: Path) -> None:
    with services(2) as processes:
        (home / "serve-9.json").write_text("{")
        (state,) = [state for state in running_states() if state.port == 21]
        assert isinstance(state, RunState) and state.pid == processes[0].pid
        assert abs(time.time() - state.since_unix_seconds) < 60
        processes[1].kill()
        processes[1].wait()
        assert [state.port for state in running_states()] == [21]
        assert [path.name for path in home.iterdir()] == ["serve-21.json"]


def test_the_file_of_another_version_is_read_as_far_as_it_is_known(home: Path) -> None:
    with services(1) as processes:
        path = next(home.glob("serve-*.json"))
        content = json.loads(path.read_text(encoding="utf-8"))
        del content["model"], content["since_unix_seconds"]
        path.write_text(json.dumps({**content, "new_field": 1}), encoding="utf-8")
        (state,) = running_states()
        assert (state.pid, state.model) == (processes[0].pid, "unknown")
        assert path.exists()


def test_an_abbreviated_flag_is_refused() -> None:
    with services(1) as processes:
        with pytest.raises(SystemExit):
            main(["stop", "--al"])
        assert processes[0].poll() is None
