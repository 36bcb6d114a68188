"""Acts as an expert actor of an older epoch that comes back late.

    python -m tests.end_to_end.late_rank ask RAY_ADDRESS          asks actors to join the previous epoch
    python -m tests.end_to_end.late_rank connect HOST PORT EPOCH  connects to a dense actor with that epoch,
    without Ray

`ask` prints the reply of each actor on a line of its own, and on the last line the arguments of `connect` for
dense-0.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from actors.errors import ActorError
from actors.exchange.deadline import Deadline
from actors.exchange.links.expert.connect import JoinAttempt, connect
from actors.exchange.links.handshake import LinkHello
from actors.exchange.rendezvous import connect_store
from actors.protocol.messages import ExpertMember, Membership

_CALL_SECONDS = 20.0
_CONNECT_SECONDS = 30.0


def main() -> None:
    """Ask actors to join, or connect to one."""
    if sys.argv[1] == "ask":
        _ask(sys.argv[2])
    else:
        print(_connect(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))


def _ask(ray_address: str) -> None:
    import ray

    ray.init(address=ray_address, namespace="phimoe", log_to_driver=False)
    dense = ray.get_actor("phimoe-dense-0")
    address: Any = ray.get(dense.listen.remote(), timeout=_CALL_SECONDS)
    report: Any = ray.get(dense.report.remote(), timeout=_CALL_SECONDS)
    epoch = report.epoch - 1
    old = Membership(epoch=epoch, dense=(), experts=(ExpertMember(index=0, experts=tuple(range(16))),))
    for name in ("phimoe-dense-0", "phimoe-expert-0"):
        try:
            ray.get(ray.get_actor(name).join.remote(old), timeout=_CALL_SECONDS)
            print(f"{name}: joined")
        except ActorError as error:
            # Ray raises a class of its own, derived from the class that the actor raised.
            names = (base.__name__ for base in type(error).__mro__ if base.__module__ == "actors.errors")
            print(f"{name}: {next(names)}")
    print(address[2], address[3], epoch)


def _connect(host: str, port: int, epoch: int) -> str:
    deadline, stop = Deadline(seconds=_CONNECT_SECONDS), threading.Event()
    store = connect_store(host, port, "dense-0", deadline, stop)
    hello = LinkHello(expert_index=0, incarnation="of yesterday", dense_incarnation="", epoch=epoch)
    try:
        connect(JoinAttempt(deadline=deadline, stop=stop), store, "dense-0", hello)
    except ActorError as error:
        return type(error).__name__
    return "let in"


if __name__ == "__main__":
    main()
