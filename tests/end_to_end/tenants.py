"""Take away a host's room for further actors: `python -m tests.end_to_end.tenants RAY_ADDRESS take|leave HOST LABEL`.

What is taken leaves room for one actor that claims the label, and is taken again when the host comes back.
"""

from __future__ import annotations

import sys

import ray
from ray.util.placement_group import get_placement_group, placement_group, remove_placement_group

_WAIT_SECONDS = 30


def main() -> None:
    """Take or leave."""
    address, action, host, label = sys.argv[1:]
    ray.init(address=address, namespace="tenants", log_to_driver=False)
    name = f"{label}-{host}"
    if action == "leave":
        remove_placement_group(get_placement_group(name))
        return
    group = placement_group([{f"node:{host}": 0.001, label: 0.999}], name=name, lifetime="detached")
    if not group.wait(_WAIT_SECONDS):
        raise TimeoutError(f"{name} is not to be had")


if __name__ == "__main__":
    main()
