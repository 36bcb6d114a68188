"""The operations that an operator can ask for, as one message each.

The HTTP route `/admin/NAME`, the command `phimoe NAME` and the gRPC method follow from the message: its
fields are the body of the request and the flags of the command. `operations.py` carries out the operation.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias, get_args

import msgspec

from actors.checkpoint.config import NUM_EXPERTS
from cluster.kinds.scalars import Integer, Number

_BEYOND_GRACE_SECONDS = 30.0


class OperationMessage(msgspec.Struct, frozen=True, kw_only=True, tag=str.lower):
    """Base of all operations. The first line of a subclass's docstring is its summary, shown to users."""

    @classmethod
    def name(cls) -> str:
        """The name that users know, such as "scale"."""
        return cls.__name__.lower()

    @classmethod
    def summary(cls) -> str:
        """What the operation does, in one line without a full stop."""
        return (cls.__doc__ or "").partition("\n")[0].rstrip(".")

    def deadline_seconds(self, load_deadline_seconds: float) -> float:
        """Return how long a caller waits for the end of the operation. The operation goes on after that."""
        return load_deadline_seconds


class Scale(OperationMessage, frozen=True, kw_only=True):
    """Change the number of expert actors."""

    expert_actors: Annotated[int, Integer(1, NUM_EXPERTS), "The number of expert actors afterwards."]


class Rebalance(OperationMessage, frozen=True, kw_only=True):
    """Place the experts again by measured load."""


class Restart(OperationMessage, frozen=True, kw_only=True):
    """Restart all actors one by one.

    With one replica of each expert, requests pause while an expert actor restarts, since no memory is set
    aside for a further copy of its experts. With two replicas no request waits.
    """


class Drain(OperationMessage, frozen=True, kw_only=True):
    """Finish the running requests and refuse new ones.

    Requests that still run after the grace period are ended by the ingress replicas, with an error. A second
    drain can shorten the grace period; nothing undoes a drain.
    """

    grace_seconds: Annotated[float, Number(0, 3600), "How long running requests may go on."] = 30.0

    def deadline_seconds(self, load_deadline_seconds: float) -> float:
        """Return the grace period plus time to end the requests that are left after it."""
        return self.grace_seconds + _BEYOND_GRACE_SECONDS


Operation: TypeAlias = Scale | Rebalance | Restart | Drain
OPERATIONS: tuple[type[Operation], ...] = get_args(Operation)
