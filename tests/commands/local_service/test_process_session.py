"""Tests how the parent of a service learns that the service has ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.running import ROOT

RUN = """
import os, signal, sys
from pathlib import Path
from cluster.commands.local_service.process_session import SessionLostError, run_in_own_session

def work():
    {work}

try:
    print("status", run_in_own_session(work, Path("/nowhere-of-mine")))
except SessionLostError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("work", "output", "errors"),
    [
        pytest.param("return 3", "status 3", "", id="returns"),
        pytest.param("1 / 0", "status 1", "ZeroDivisionError", id="raises"),
        pytest.param("os._exit(4)", "the service has ended without a word, with status 4", "", id="exits"),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)",
            "the service has ended without a word, with status 137",
            "",
            id="killed",
        ),
        pytest.param(
            "os.fork() or signal.pause(); os._exit(5)",
            "the service has ended without a word, with status 5",
            "",
            id="leaves-a-child",
        ),
    ],
)
def test_an_end_without_an_explanation_is_told_apart(
    work: str, output: str, errors: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(work=work)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{output}\n"
    assert errors in done.stderr and (errors or not done.stderr)
