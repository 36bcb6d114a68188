"""Waiting with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """The result of `work`. Raises asyncio.TimeoutError when it takes longer; it is cancelled then.

    Unlike asyncio.wait_for before Python 3.12, a cancellation of the caller is never lost when it comes in the moment
    in which the work is done.
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
    """Look at the outcome, which nobody may wait for any longer, so that asyncio does not report it."""
    if not task.cancelled():
        task.exception()
