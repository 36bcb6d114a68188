"""Decides which faults happen, and when a fault may happen. Pure.

random_plan(seed, count) -> faults
is_survivable(view, away, fault) -> whether the fault leaves a live copy of every expert
"""

from __future__ import annotations

import random
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["expert", "dense", "supervisor"]
Way = Literal["kill", "hang", "pause"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A process that is killed, stopped for good, or stopped for a while."""

    kind: Kind
    index: int
    way: Way
    pause_seconds: float = 0.0
    """Time after which a process that is stopped for a while continues, if it still exists."""
    delay_seconds: float = 0.0
    """Wait before the fault, once it may happen."""
    is_joint: bool = False
    """Whether the fault follows the one before at once, whatever the state of that victim."""

    @property
    def victim(self) -> str:
        """The actor's name."""
        return "phimoe-supervisor" if self.kind == "supervisor" else f"phimoe-{self.kind}-{self.index}"

    @property
    def label(self) -> str:
        """The name under which faults are reported together."""
        return f"{self.kind} {self.way}"


def random_plan(seed: int, count: int, num_experts: int, num_dense: int) -> list[Fault]:
    """Return random faults: half of them hit expert actors, and a third dense actors.

    A sixth of the faults follow the one before at once. A stopped supervisor always continues, since nothing
    replaces it.
    """
    dice = random.Random(seed)
    plan: list[Fault] = []
    for _ in range(count):
        kind: Kind = dice.choices(("expert", "dense", "supervisor"), (3, 2, 1))[0]
        way: Way = dice.choices(("kill", "hang", "pause"), (5, 3, 2))[0]
        if kind == "supervisor" and way == "hang":
            way = "pause"
        plan.append(
            Fault(
                kind=kind,
                index=dice.randrange({"expert": num_experts, "dense": num_dense, "supervisor": 1}[kind]),
                way=way,
                pause_seconds=dice.uniform(0.05, 3.0) if way == "pause" else 0.0,
                delay_seconds=dice.uniform(0.0, 1.0),
                is_joint=bool(plan) and not plan[-1].is_joint and dice.random() < 1 / 6,
            )
        )
    return plan


def is_survivable(view: dict[str, Any], away: Container[str], fault: Fault, *, needs_all: bool) -> bool:
    """Return whether every expert and a dense actor have a live copy besides the victim.

    `view` is the content of /cluster, and `away` are the victims that are not back yet. With `needs_all` no
    other actor may be away: without replicas the victim's restart is the only remedy.
    """
    there = [actor for actor in view["actors"] if actor["state"] == "ready" and actor["name"] not in away]
    if fault.victim not in {actor["name"] for actor in there}:
        return False
    if needs_all:
        return len(there) == len(view["actors"])
    left = [actor for actor in there if actor["name"] != fault.victim]
    held = {expert for actor in left for expert in actor["experts"]}
    all_experts = {expert for actor in view["actors"] for expert in actor["experts"]}
    return held == all_experts and any(actor["kind"] == "dense" for actor in left)
