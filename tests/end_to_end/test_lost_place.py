"""An actor whose node is gone waits for room without keeping Ray's head busy, until a new node comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_an_actor_without_a_node_waits_for_one_and_leaves_rays_head_in_peace(tmp_path: Path) -> None:
    # Ray's sockets have no room for a longer path.
    with tempfile.TemporaryDirectory(prefix="ph") as scratch:
        done = subprocess.run(
            [sys.executable, "-m", "tests.end_to_end.lost_place", str(tmp_path / "seen.json")],
            cwd=ROOT,
            env={
                **os.environ,
                "RAY_AUTH_MODE": "disabled",
                "PYTHONPATH": str(ROOT),
                "RAY_TMPDIR": scratch,
            },
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
    busy = {name: seen.pop(name) for name in ("busy_before", "busy_after")}
    assert "the cluster has no room for it now" in seen.pop("error")
    assert seen == {"given_up": ["PENDING", True], "is_back": True, "at_last": "CREATED", "left": ""}
    assert busy["busy_after"] < busy["busy_before"] / 2, busy
