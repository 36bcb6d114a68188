"""Reserves nodes for actors: each actor has one Ray placement group of its own name, with one bundle.

Each actor has its own group because Ray places either all lost bundles of a group again or none. In a shared
group, an actor for which no node has room would keep the other actors from starting.

    PENDING -> CREATED -> its node dies: RESCHEDULING -> CREATED

Up to Ray 2.60 the head searches without a pause for a node for a RESCHEDULING group (ray-project/ray#65007).
If no node has room, the search takes a whole core and other calls of the head take seconds. For a PENDING
group the head tries at growing intervals, and when a node joins. A group that has lost its node is therefore
removed and created again. Its actor is created only when the new group has a node: otherwise Ray may ask a
node for the actor that never learns where the group is.

All functions here block while Ray's head is down.
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
"""Prefix of the names of all actors and their groups."""


def reserve(bundles: Mapping[str, Mapping[str, float]], seconds: float) -> None:
    """Create the missing placement groups, all or none.

    Raises ActorLostError if they cannot all be placed within `seconds`.
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
    """Ask for a new group for each name that has none, if possible on the node that `choose_node` returns."""
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
    """Return the group of that name if it has a node, else None."""
    has_node = any(item["name"] == name and item["state"] == "CREATED" for item in _live())
    return _find(name) if has_node else None


def remove(name: str) -> None:
    """Remove the group of that name, if there is one."""
    group = _find(name)
    if group is not None:
        remove_placement_group(group)


def remove_all() -> None:
    """Remove the groups of all actors."""
    for item in _live():
        remove(item["name"])


def unplaced() -> dict[str, dict[str, float]]:
    """Return the groups that have lost their node and have no new node yet: name -> claimed resources."""
    return {item["name"]: dict(item["bundles"][0]) for item in _live() if item["state"] == "RESCHEDULING"}


def place_again(name: str, claims: Mapping[str, float]) -> None:
    """Replace a group. Its actor is removed, too, since Ray cannot restart the actor in another group."""
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
