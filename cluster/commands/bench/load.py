"""Sends many calls to one server, in a closed loop (a fixed number at a time) or an open one (at given
times)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import aiohttp

from cluster.commands.bench.client import Outcome, Target, send
from cluster.commands.bench.workload import Call, RandomCalls, arrival_seconds, repeat_calls

Tick = Callable[[Outcome], None]
"""Called with each outcome when the call ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """One load: its calls, their number and their times."""

    calls: RandomCalls | tuple[Call, ...]
    """Random calls, drawn again for each round, or the calls of a dataset, repeated if there are not
    enough."""
    num_requests: int
    concurrency: int | None = None
    """Number of calls under way at a time; exactly one of `concurrency` and `rate` is set."""
    rate: float | None = None
    """Mean number of calls per second, with Poisson arrivals."""
    num_warmup: int = 0
    """Calls that are sent before the load and not measured."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_requests < 1:
            raise ValueError(f"num_requests is {self.num_requests}, expected at least 1")
        if self.num_warmup < 0:
            raise ValueError(f"warmup is {self.num_warmup}, expected at least 0")
        if (self.concurrency is None) == (self.rate is None):
            raise ValueError("expected exactly one of concurrency and rate")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}, expected at least 1")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"rate is {self.rate}, expected more than 0 requests/s")

    def fitted(self, vocab: int, max_model_len: int | None) -> LoadPlan:
        """This load for a model with this vocabulary and context. The calls of a dataset do not change."""
        if not isinstance(self.calls, RandomCalls):
            return self
        return replace(self, calls=self.calls.fitted(vocab, max_model_len))

    @property
    def lengths(self) -> str:
        """A sentence part that says how long prompts and answers are; "" for a dataset."""
        calls = self.calls
        if not isinstance(calls, RandomCalls):
            return ""
        return f"{calls.prompt_tokens} prompt tokens and {calls.output_tokens} output tokens"


async def run_load(
    client: aiohttp.ClientSession, target: Target, plan: LoadPlan, round_index: int, tick: Tick
) -> list[Outcome]:
    """Warm up, then send the load.

    Each round has other random prompts and arrivals; all servers of a round get the same.
    """
    seed = plan.seed + 2 * round_index
    warmup = _calls(plan, plan.num_warmup, seed + 1)
    if warmup:
        await closed_loop(client, target, warmup, plan.concurrency or len(warmup), lambda _: None)
    calls = _calls(plan, plan.num_requests, seed)
    if plan.concurrency is not None:
        return await closed_loop(client, target, calls, plan.concurrency, tick)
    assert plan.rate is not None
    return await open_loop(client, target, calls, arrival_seconds(plan.rate, len(calls), seed), tick)


async def closed_loop(
    client: aiohttp.ClientSession, target: Target, calls: Sequence[Call], concurrency: int, tick: Tick
) -> list[Outcome]:
    """Keep `concurrency` calls under way until all are answered. Return the outcomes in the order in which
    calls ended."""
    start = time.perf_counter()
    waiting = iter(calls)
    outcomes: list[Outcome] = []

    async def work() -> None:
        for call in waiting:  # The workers share the iterator, so each call is sent once.
            outcome = await send(client, target, call, start)
            outcomes.append(outcome)
            tick(outcome)

    await _all([asyncio.ensure_future(work()) for _ in range(min(concurrency, len(calls)))])
    return outcomes


async def open_loop(
    client: aiohttp.ClientSession,
    target: Target,
    calls: Sequence[Call],
    arrivals: Iterable[float],
    tick: Tick,
) -> list[Outcome]:
    """Send each call at its arrival time, regardless of how many are still under way."""
    start = time.perf_counter()
    outcomes: list[Outcome] = []

    async def at(call: Call, arrival: float) -> None:
        await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
        outcome = await send(client, target, call, start)
        outcomes.append(outcome)
        tick(outcome)

    await _all([asyncio.ensure_future(at(call, when)) for call, when in zip(calls, arrivals, strict=True)])
    return outcomes


def _calls(plan: LoadPlan, count: int, seed: int) -> list[Call]:
    if isinstance(plan.calls, RandomCalls):
        return plan.calls.make(count, seed)
    return repeat_calls(list(plan.calls), count)


async def _all(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Wait for all tasks. If one raises, or on cancellation, the others are cancelled."""
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
