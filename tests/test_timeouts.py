"""Tests that waiting with a deadline loses neither results nor cancellations."""

from __future__ import annotations

import asyncio
import gc

import pytest

from cluster.timeouts import within


def test_a_result_in_time_is_returned() -> None:
    assert asyncio.run(within(5, asyncio.sleep(0, "result"))) == "result"


def test_work_that_is_late_is_cancelled() -> None:
    async def run() -> bool:
        work = asyncio.ensure_future(asyncio.sleep(10))
        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, work)
        await asyncio.sleep(0)
        return work.cancelled()

    assert asyncio.run(run())


def test_a_cancellation_in_the_moment_of_completion_is_not_lost() -> None:
    async def run() -> None:
        work: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiter = asyncio.create_task(within(10, work))
        await asyncio.sleep(0.01)
        work.set_result("done")
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    asyncio.run(run())


@pytest.mark.filterwarnings("error")
def test_a_failure_in_the_moment_of_a_cancellation_is_not_reported() -> None:
    """No caller is left that could take the failure."""
    reported: list[dict[str, object]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        work: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        waiter = asyncio.create_task(within(10, work))
        await asyncio.sleep(0)
        waiter.cancel()
        work.set_exception(ConnectionRefusedError())
        with pytest.raises((asyncio.CancelledError, ConnectionRefusedError)):
            await waiter
        del work, waiter
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(run())
    assert not reported
