"""Injects faults into a running service, and measures what its clients see of them.

    python -m tests.support.faults --faults 200 --seed 1

The command starts a service and prints a table. It exits with 1 if a stream failed or was wrong.

    truth        every prompt once, undisturbed
    undisturbed  32 streams at all times and nothing else: the machine's own pauses
    faults       32 streams at all times, while a plan (`fault_plan.py`) kills and stops processes

Every stream that ends is compared with the truth, token for token. The time between two deltas of a choice is
a gap. A gap belongs to the first fault that happened in it, or else to the last fault before it. A pause is
the longest gap of a choice that belongs to one fault. The time until the first delta is counted separately,
as a wait.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import tempfile
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tests.end_to_end.running import Running, serving
from tests.support.fault_plan import Fault, is_survivable, random_plan
from tests.support.streams import Body, Stream, all_of, catalogue, get_json, keep_open

NUM_STREAMS = 32
_NUM_BODIES = 48
_WHOLE_SECONDS = 90.0
"""Longest time until the next fault may happen. If a victim is not back by then, the service is broken."""
_CHECK_SECONDS = 0.15
_UNDISTURBED = "none"
_NUM_WORST = 6


@dataclass(kw_only=True, slots=True)
class Injected:
    """A fault that has happened."""

    fault: Fault
    at: float
    pid: int
    back_after: float | None = None
    """Seconds until the place had a new process that worked; None if that was not measured."""
    pauses: list[float] = field(default_factory=list)
    """The pause of each choice that was open, in seconds."""
    waits: list[float] = field(default_factory=list)
    """The wait for the first delta of each choice, in seconds."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """The results of a run."""

    injected: list[Injected] = field(default_factory=list)
    undisturbed: list[float] = field(default_factory=list)
    """Pauses without any fault, in seconds."""
    undisturbed_waits: list[float] = field(default_factory=list)
    num_streams: int = 0
    num_tokens: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left_over: str | None = None
    """The load that the service still reported at the end, if any."""

    def pauses(self, *kinds: str) -> list[float]:
        """Return the pauses, in seconds, of every choice that was open at a fault of these kinds."""
        return [pause for item in self.injected if item.fault.kind in kinds for pause in item.pauses]


class Injector:
    """Carries out a plan on one service, and knows which victims are away."""

    def __init__(self, service: Running, *, needs_all: bool) -> None:
        self._service, self._needs_all = service, needs_all
        self._away: dict[str, Injected] = {}
        self._continuing: dict[str, asyncio.Task[None]] = {}
        self._view: dict[str, Any] | None = None
        self.injected: list[Injected] = []

    async def run(self, plan: Sequence[Fault]) -> None:
        """Inject all faults of the plan, each as soon as it may happen.

        A fault that should follow the one before at once is left out if it may not happen then.
        """
        try:
            for fault in plan:
                if not fault.is_joint:
                    await self._until_survivable(fault)
                    await asyncio.sleep(fault.delay_seconds)
                    await self._until_survivable(fault)
                elif not self._is_survivable(fault):
                    continue
                self._inject(fault)
            await self.until_whole()
        finally:
            for task in self._continuing.values():
                task.cancel()
            await asyncio.gather(*self._continuing.values(), return_exceptions=True)

    async def until_whole(self) -> None:
        """Return once all victims are back. Raises AssertionError after a time-out."""
        give_up = time.monotonic() + _WHOLE_SECONDS
        while True:
            await self._check()
            actors = (self._view or {"actors": []})["actors"]
            if (
                actors
                and not self._away
                and all(a["state"] == "ready" and not a["lost_links"] for a in actors)
            ):
                return
            assert time.monotonic() < give_up, f"not whole again; away: {sorted(self._away)}; {self._view}"
            await asyncio.sleep(_CHECK_SECONDS)

    async def _until_survivable(self, fault: Fault) -> None:
        give_up = time.monotonic() + _WHOLE_SECONDS
        while True:
            await self._check()
            if self._is_survivable(fault):
                return
            assert time.monotonic() < give_up, (
                f"{fault} may not come; away: {sorted(self._away)}; {self._view}"
            )
            await asyncio.sleep(_CHECK_SECONDS)

    def _is_survivable(self, fault: Fault) -> bool:
        return self._view is not None and is_survivable(
            self._view, self._away, fault, needs_all=self._needs_all
        )

    async def _check(self) -> None:
        self._view = await get_json(self._service.port, "/cluster", 5.0)
        if self._view is None:
            return
        for actor in self._view["actors"]:
            item = self._away.get(actor["name"])
            if item is None or actor["state"] != "ready" or actor["name"] in self._continuing:
                continue
            if actor["pid"] != item.pid or item.fault.way == "pause":
                item.back_after = time.monotonic() - item.at
                del self._away[actor["name"]]

    def _inject(self, fault: Fault) -> None:
        assert self._view is not None
        pid = next(actor["pid"] for actor in self._view["actors"] if actor["name"] == fault.victim)
        process = psutil.Process(pid)
        assert self._service.process.pid in {parent.pid for parent in process.parents()}, (
            f"{pid} is no part of it"
        )
        process.send_signal(signal.SIGKILL if fault.way == "kill" else signal.SIGSTOP)
        item = Injected(fault=fault, at=time.monotonic(), pid=pid)
        self.injected.append(item)
        self._away[fault.victim] = item
        if fault.way == "pause":
            self._continuing[fault.victim] = asyncio.create_task(self._continue(process, fault))

    async def _continue(self, process: psutil.Process, fault: Fault) -> None:
        try:
            await asyncio.sleep(fault.pause_seconds)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
            del self._continuing[fault.victim]


async def disturb(
    service: Running, plan: Sequence[Fault], *, needs_all: bool = False, undisturbed_seconds: float = 10.0
) -> Outcome:
    """Run the truth, the undisturbed streams and then the plan; return the results."""
    bodies = catalogue(_NUM_BODIES)
    truth = await all_of(service.port, bodies, 4)
    broken = [stream.failure for stream in truth if stream.failure is not None]
    assert not broken, f"a stream fails without any fault: {broken}"
    outcome, injector = Outcome(), Injector(service, needs_all=needs_all)
    quiet = Injected(fault=Fault(kind="supervisor", index=0, way="pause"), at=time.monotonic(), pid=0)
    streams = await _keep(service, bodies, truth, outcome, asyncio.sleep(undisturbed_seconds))
    _share_out(streams, [quiet])
    outcome.undisturbed, outcome.undisturbed_waits = quiet.pauses, quiet.waits
    assert not outcome.failed and not outcome.wrong, (
        f"wrong without any fault: {outcome.failed} {outcome.wrong}"
    )
    streams = await _keep(service, bodies, truth, outcome, injector.run(plan))
    outcome.injected = injector.injected
    _share_out(streams, outcome.injected)
    load = await asyncio.to_thread(service.wait_until_idle)
    if load["running"] or load["waiting"] or load["free_blocks"] != load["total_blocks"]:
        outcome.left_over = str(load)
    return outcome


async def _keep(
    service: Running, bodies: Sequence[Body], truth: Sequence[Stream], outcome: Outcome, work: Any
) -> list[Stream]:
    """Keep streams open while `work` runs, and compare each with the truth when it ends."""
    streams: list[Stream] = []

    def judge(stream: Stream) -> None:
        streams.append(stream)
        outcome.num_streams += 1
        outcome.num_tokens += sum(len(choice.token_ids) for choice in stream.choices.values())
        if stream.failure is not None:
            outcome.failed.append(f"{time.monotonic():.1f}: prompt {stream.number}: {stream.failure}")
        elif (difference := stream.difference(truth[stream.number])) is not None:
            outcome.wrong.append(f"{time.monotonic():.1f}: prompt {stream.number}: {difference}")

    async with keep_open(service.port, bodies, NUM_STREAMS, judge):
        await work
    return streams


def _share_out(streams: Sequence[Stream], injected: Sequence[Injected]) -> None:
    """Add each pause and wait to the fault to which it belongs."""
    starts = [item.at for item in injected]

    def number_of(begin: float, end: float) -> int:
        first = bisect_left(starts, begin)
        return first if first < len(starts) and starts[first] <= end else first - 1

    for stream in streams:
        for times in stream.arrivals.values():
            longest: defaultdict[int, float] = defaultdict(float)
            for begin, end in pairwise(times[1:]):
                number = number_of(begin, end)
                longest[number] = max(longest[number], end - begin)
            for number, pause in longest.items():
                if number >= 0:
                    injected[number].pauses.append(pause)
            if len(times) > 1 and (number := number_of(times[0], times[1])) >= 0:
                injected[number].waits.append(times[1] - times[0])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the values does not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def table(outcome: Outcome) -> str:
    """Return a table with one row per kind of fault.

    Its columns are the pauses of all clients, the worst pause of each fault, and the time until the victim
    was back.
    """
    groups: defaultdict[str, list[Injected]] = defaultdict(list)
    for item in outcome.injected:
        groups[item.fault.label].append(item)
        groups[f"{item.fault.kind} (all)"].append(item)
    lines = [
        "| fault | number | pause p50 | p90 | p99 | max | worst client of a fault p50 | p90 "
        "| first token p50 | p99 | back p50 | max |",
        "|" + "---|" * 12,
        _row(_UNDISTURBED, 0, [outcome.undisturbed, [], outcome.undisturbed_waits, []]),
    ]
    for label, items in sorted(groups.items()):
        pauses = [pause for item in items for pause in item.pauses]
        worst = [max(item.pauses, default=0.0) for item in items]
        waits = [wait for item in items for wait in item.waits]
        back = [item.back_after for item in items if item.back_after is not None]
        lines.append(_row(label, len(items), [pauses, worst, waits, back]))
    return "\n".join(lines)


def worst(outcome: Outcome) -> list[str]:
    """Describe the faults with the longest pauses, each with the faults around it."""
    items = outcome.injected
    ranking = sorted(range(len(items)), key=lambda i: max(items[i].pauses, default=0.0), reverse=True)

    def around(number: int) -> str:
        near = [
            f"{item.fault.kind}-{item.fault.index} {item.fault.way} {item.at - items[number].at:+.1f} s"
            for item in items[max(0, number - 2) : number + 3]
            if item is not items[number]
        ]
        return "; ".join(near)

    return [
        f"{max(items[i].pauses):.2f} s, {len(items[i].pauses)} choices: "
        f"{items[i].fault.kind}-{items[i].fault.index} {items[i].fault.way} "
        f"at {items[i].at - items[0].at:.0f} s, beside {around(i)}"
        for i in ranking[:_NUM_WORST]
        if items[i].pauses
    ]


def _row(label: str, number: int, seconds: list[list[float]]) -> str:
    shares = ((0.5, 0.9, 0.99, 1.0), (0.5, 0.9), (0.5, 0.99), (0.5, 1.0))
    figures = [percentile(values, share) for values, of in zip(seconds, shares, strict=True) for share in of]
    return f"| {label} | {number} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |"


def summary(outcome: Outcome) -> str:
    """Return the table, and everything that was wrong."""
    head = (
        f"{len(outcome.injected)} faults, {outcome.num_streams} streams, {outcome.num_tokens} tokens: "
        f"{len(outcome.failed)} failed, {len(outcome.wrong)} wrong"
    )
    lines = [head, *outcome.failed[:20], *outcome.wrong[:20], table(outcome), *worst(outcome)]
    if outcome.left_over is not None:
        lines.append(f"left over: {outcome.left_over}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=50, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of the plan")
    parser.add_argument("--replicas", type=int, default=2, help="expert actors that hold each expert")
    parser.add_argument(
        "--only", help="expert, dense or supervisor, and kill, hang or pause: as in 'expert kill'"
    )
    parser.add_argument("--json", type=Path, help="file for every fault with its pauses")
    arguments = parser.parse_args()
    plan = random_plan(arguments.seed, 100 * arguments.faults, 4, 2)
    plan = [fault for fault in plan if arguments.only is None or fault.label.startswith(arguments.only)]
    with tempfile.TemporaryDirectory() as home, serving(Path(home), *flags(arguments.replicas)) as service:
        work = disturb(service, plan[: arguments.faults], needs_all=arguments.replicas == 1)
        outcome = asyncio.run(work)
    print(summary(outcome))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return int(bool(outcome.failed or outcome.wrong or outcome.left_over))


def flags(replicas: int) -> tuple[str, ...]:
    """Return the flags of the service into which faults are injected."""
    actors = ("--expert-actors", "4", "--expert-replicas", str(replicas), "--dense-actors", "2")
    return (*actors, "--dtype", "float32")


if __name__ == "__main__":
    raise SystemExit(main())
