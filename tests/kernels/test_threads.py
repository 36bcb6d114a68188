"""The kernels' pool of threads. Results have the same bits whichever threads compute at the same time."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from actors.kernels import threads
from actors.kernels.library import load
from actors.linear import make_product

pytestmark = pytest.mark.skipif(load() is None, reason="no kernels for this processor")

_ROUNDS = 50


@pytest.fixture
def spare_thread() -> Iterator[None]:
    """A share of one core and one spare thread, whatever number of cores this machine has."""
    before, num_spare = torch.get_num_threads(), threads._num_spare
    threads.share_cores(1)
    threads._num_spare = 1
    yield
    torch.set_num_threads(before)
    threads._num_spare = num_spare


def _rows(seed: int, num_rows: int = 3) -> torch.Tensor:
    return torch.randn(num_rows, 256, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def _weight() -> torch.Tensor:
    return torch.randn(2000, 256, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


def test_callers_at_the_same_time_get_what_each_gets_alone(spare_thread: None) -> None:
    product = make_product(_weight())
    alone = [product(_rows(seed)) for seed in range(4)]

    def is_right(seed: int) -> bool:
        rows = _rows(seed)
        return all(torch.equal(product(rows), alone[seed]) for _ in range(_ROUNDS))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_right, range(4), timeout=60))


def test_regions_of_changing_size_one_after_the_other(spare_thread: None) -> None:
    small, large = make_product(_weight()[:1100]), make_product(_weight())
    expected = [(small(_rows(n, n)), large(_rows(n, n))) for n in range(1, 20)]
    for _ in range(_ROUNDS):
        for n, (few, many) in enumerate(expected, 1):
            assert torch.equal(small(_rows(n, n)), few)
            assert torch.equal(large(_rows(n, n)), many)


def _answer_of_child(method: str, target: Callable[[multiprocessing.connection.Connection], None]) -> Any:
    """Start a child process by "fork" or "spawn" and return what it sends."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(theirs,))  # type: ignore[attr-defined]
    child.start()
    try:
        assert ours.poll(60), "the child does not answer"
        return ours.recv()
    finally:
        child.join(10)
        child.kill()


def _sum_in_child(answer: multiprocessing.connection.Connection) -> None:
    answer.send(make_product(_weight())(_rows(1)).float().sum().item())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(spare_thread: None) -> None:
    expected = make_product(_weight())(_rows(1)).float().sum().item()
    assert _answer_of_child("fork", _sum_in_child) == expected


def _send_a_spare_thread_away(answer: multiprocessing.connection.Connection) -> None:
    """Put the caller and its spare thread on the same core.

    Sends that core, and the cores on which the spare thread may run afterwards.
    """
    threads.share_cores(1)
    product = make_product(_weight())
    product(_rows(1))
    give_up = time.monotonic() + 20
    spare: list[int] = []
    while not spare and time.monotonic() < give_up:
        tasks = [int(name) for name in os.listdir("/proc/self/task")]
        spare = [task for task in tasks if os.sched_getscheduler(task) == os.SCHED_IDLE]
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    allowed = {core}
    while core in allowed and time.monotonic() < give_up:
        os.sched_setaffinity(spare[0], {core})
        product(_rows(1))
        time.sleep(0.003)  # Meanwhile the spare thread reports the core that it runs on.
        product(_rows(1))
        allowed = os.sched_getaffinity(spare[0])
    answer.send((core, allowed))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_spare_thread_on_the_callers_core_is_sent_to_another_one() -> None:
    # The child is not forked, since the pool of this process may have threads already.
    core, allowed = _answer_of_child("spawn", _send_a_spare_thread_away)
    assert allowed == os.sched_getaffinity(0) - {core}


def test_a_share_is_stretched_by_idle_cores_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    before, num_spare = torch.get_num_threads(), threads._num_spare
    try:
        for num_cores, num_own, expected in ((1, 1, 1), (2, 1, 2), (2, 2, 2), (8, 2, 4), (3, 2, 3)):
            monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=num_cores: set(range(n)))
            threads.share_cores(num_own)
            assert threads.num_threads() == expected
    finally:
        torch.set_num_threads(before)
        threads._num_spare = num_spare
