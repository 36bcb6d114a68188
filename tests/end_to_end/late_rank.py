"""An expert actor of an older epoch that comes back late: `python -m tests.end_to_end.late_rank RAY_ADDRESS`.

Knocks at the door of dense-0 with the epoch before the present one, as a process of this host whose link was cut would, and
asks expert actors to join that epoch. Prints what each of them said, one a line.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import ray

from actors.errors import ActorError
from actors.exchange.deadline import Deadline
from actors.exchange.handshake import LinkHello
from actors.exchange.knock import Knocker, knock
from actors.exchange.rendezvous import connect_store
from actors.messages import ActorReport, ExpertMember, Membership

_CALL_SECONDS = 20.0
_CONNECT_SECONDS = 30.0


def main() -> None:
    """Knock, ask, print."""
    ray.init(address=sys.argv[1], namespace="phimoe", log_to_driver=False)
    dense = ray.get_actor("phimoe-dense-0")
    address: Any = ray.get(dense.listen.remote(), timeout=_CALL_SECONDS)
    report: ActorReport = ray.get(dense.report.remote(), timeout=_CALL_SECONDS)
    print(f"door: {_knock(address[2], address[3], report.epoch - 1)}")
    old = Membership(
        epoch=report.epoch - 1, dense=(), experts=(ExpertMember(index=0, experts=tuple(range(16))),)
    )
    for name in ("phimoe-dense-0", "phimoe-expert-0"):
        try:
            ray.get(ray.get_actor(name).join.remote(old), timeout=_CALL_SECONDS)
            print(f"{name}: joined")
        except ActorError as error:
            print(f"{name}: {type(error).__name__.rpartition('.')[2]} {error}")


def _knock(host: str, port: int, epoch: int) -> str:
    deadline, stop = Deadline(seconds=_CONNECT_SECONDS), threading.Event()
    store = connect_store(host, port, "dense-0", deadline, stop)
    hello = LinkHello(
        expert_index=0, incarnation="of yesterday", dense_index=0, dense_incarnation="", epoch=epoch
    )
    try:
        knock(Knocker(deadline=deadline, stop=stop), store, "dense-0", hello)
    except ActorError as error:
        return type(error).__name__
    return "let in"


if __name__ == "__main__":
    main()
