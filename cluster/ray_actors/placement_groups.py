"""Places of actors on the machines of a Ray cluster: one placement group per actor, of that name, with one bundle.

Each has a group of its own since Ray places again either all lost bundles of a group or none: an actor for which there is no
room would keep others away from theirs.

    PENDING -> CREATED -> its node dies: RESCHEDULING -> CREATED

Up to Ray 2.60 the head looks for room for a group that is RESCHEDULING without a pause (ray-project/ray#65007): where there
is none, it takes a core for itself, and whatever else is asked of it takes seconds. For one that is PENDING it tries ever
more rarely, and when a node comes. So a group that has lost its node is given up and made anew. Its actor is created when the
new group has a node, not before: Ray may ask a node for it that is never told where the group is.

All of these block while Ray's head is away.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from cluster.ray_actors.actor_settings import choose_node
from cluster.ray_actors.ray_environment import NAMESPACE
from cluster.supervisor.remote_actor import ActorLostError

_PREFIX = "phimoe-"
"""Of the names of actors and their groups."""


def reserve(bundles: Mapping[str, Mapping[str, float]], seconds: float) -> None:
    """A group with a node for each name that has no group.

    Raises ActorLostError, with none of the new ones left, where there is no room for all of them within so many seconds.
    """
    new = ask_for(bundles)
    end = time.monotonic() + seconds
    unplaced = [name for name, group in new.items() if not group.wait(max(1, int(end - time.monotonic())))]
    if unplaced:
        for group in new.values():
            remove_placement_group(group)
        claims = bundles[unplaced[0]]
        raise ActorLostError(", ".join(unplaced), f"the cluster has no room for {claims} each")


def ask_for(bundles: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """A new group for each name that has none, as far apart as `choose_node` puts them where there is room."""
    described: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = {node["NodeID"]: node["Resources"] for node in described if node["Alive"]}
    places = {item["name"]: str(item["bundles_to_node_id"].get(0, "")) for item in _live()}
    new: dict[str, Any] = {}
    for name, claims in bundles.items():
        if name in places:
            continue
        kind = name.rpartition("-")[0]
        alike = Counter(node for other, node in places.items() if other.rpartition("-")[0] == kind)
        places[name] = choose_node(claims, nodes, alike, Counter(places.values())) or ""
        new[name] = placement_group(
            [dict(claims)],
            strategy="STRICT_PACK",
            name=name,
            lifetime="detached",
            _soft_target_node_id=places[name] or None,
        )
    return new


def find_placed(name: str) -> Any:
    """The group of that name once it has a node, None before."""
    has_node = any(item["name"] == name and item["state"] == "CREATED" for item in _live())
    return _find(name) if has_node else None


def remove(name: str) -> None:
    """The group of that name, where there is one."""
    group = _find(name)
    if group is not None:
        remove_placement_group(group)


def remove_all() -> None:
    """Every actor's."""
    for item in _live():
        remove(item["name"])


def unplaced() -> dict[str, dict[str, float]]:
    """Names of those that have lost their node and have no other one yet -> what they claim of one."""
    return {item["name"]: dict(item["bundles"][0]) for item in _live() if item["state"] == "RESCHEDULING"}


def place_anew(name: str, claims: Mapping[str, float]) -> None:
    """Another group in place of that one. Its actor is removed with it, since it cannot be restarted in any other."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    remove(name)
    ask_for({name: claims})


def _find(name: str) -> Any:
    with contextlib.suppress(ValueError):
        return ray.util.get_placement_group(name)
    return None


def _live() -> list[dict[str, Any]]:
    table: dict[str, dict[str, Any]] = placement_group_table()
    return [
        item for item in table.values() if item["state"] != "REMOVED" and item["name"].startswith(_PREFIX)
    ]
