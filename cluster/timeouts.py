"""Waits for a result with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """Return the result of `work`.

    If it takes longer than `seconds`, cancel it and raise asyncio.TimeoutError.

    With None there is no deadline. asyncio.wait_for before Python 3.12 can lose a cancellation of the caller
    that comes at the moment in which the work is done; this function never loses it.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()
        task.add_done_callback(_take_note)


def _take_note(task: asyncio.Future[T]) -> None:
    """Read the exception of a task for which nothing waits any longer, so that asyncio does not report it."""
    if not task.cancelled():
        task.exception()
