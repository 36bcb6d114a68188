"""A core is claimed by one actor at a time, and is free when the actor is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from actors.expert.cpu_affinity import CoreClaim

HOLD = """
import sys
from actors.expert.cpu_affinity import CoreClaim
claim = CoreClaim(1, sys.argv[1])
print(sorted(claim.cores), flush=True)
sys.stdin.read()
"""

# A service that runs on this host has another namespace.
NAMESPACE = f"test-{os.getpid()}"


def claim_cores(num_cores: int) -> CoreClaim:
    return CoreClaim(num_cores, NAMESPACE)


def test_two_claims_share_no_core_and_a_released_one_is_free_again() -> None:
    num_cores = len(os.sched_getaffinity(0))
    claims = [claim_cores(1) for _ in range(num_cores)]
    assert sorted(core for claim in claims for core in claim.cores) == sorted(os.sched_getaffinity(0))
    assert claim_cores(1).cores == set()
    freed = set(claims[0].cores)
    claims[0].release()
    again = claim_cores(1)
    assert again.cores == freed
    for claim in (*claims, again):
        claim.release()


def test_too_many_cores_claim_none_and_leave_them_free() -> None:
    assert claim_cores(len(os.sched_getaffinity(0)) + 1).cores == set()
    claim = claim_cores(1)
    assert len(claim.cores) == 1
    claim.release()


def test_a_killed_process_claims_nothing() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, NAMESPACE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdin is not None and holder.stdout is not None
        held = holder.stdout.readline()
        claim = claim_cores(1)
        assert str(sorted(claim.cores)) != held.strip()
        claim.release()
    finally:
        holder.kill()
        holder.communicate()
    everything = claim_cores(len(os.sched_getaffinity(0)))
    assert everything.cores == os.sched_getaffinity(0)
    everything.release()


def test_only_the_thread_that_settles_is_bound() -> None:
    before = os.sched_getaffinity(0)
    claim = claim_cores(1)
    seen: list[object] = []

    def compute() -> None:
        claim.settle()
        claim.settle()
        seen.extend([os.sched_getaffinity(0), os.sched_getscheduler(0)])

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert seen == [claim.cores, os.SCHED_BATCH]
    assert os.sched_getaffinity(0) == before and os.sched_getscheduler(0) == os.SCHED_OTHER
    claim.release()
