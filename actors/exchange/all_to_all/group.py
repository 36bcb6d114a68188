"""The group of all dense and all expert actors, for the collective transport.

rank   0 .. D-1        D .. D+E-1
       dense actors    expert actors, in the order of the membership
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist

from actors.errors import DeadlineError, LinkError
from actors.exchange.deadline import Deadline
from actors.exchange.process_groups import gloo, nccl
from actors.exchange.rendezvous import Rendezvous

BACKENDS = ("gloo", "nccl")
"""The backends that can carry the collective transport."""

_PEERS = "the all-to-all group"


class Group(Protocol):
    """A group that is up. All ranks must make the same calls in the same order."""

    @property
    def size(self) -> int:
        """The number of ranks."""

    def start(
        self,
        output: torch.Tensor,
        output_splits: list[int],
        source: torch.Tensor,
        source_splits: list[int],
    ) -> Callable[[int | None], None]:
        """Begin all_to_all_single: send rank i the i-th part of `source`.

        The part that rank i sends arrives in the i-th part of `output`. Splits are in bytes. Returns a
        function that waits for the end. The function takes the layer, which its errors name, and raises
        LinkError if the group broke or was closed, DeadlineError if a rank did not take part in time. Keep
        both tensors until it has returned.
        """

    def close(self) -> None:
        """Leave the group. Its ranks and waiting threads notice at once. Idempotent; for any thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupContext:
    """How one rank opens its end of the group."""

    backend: str
    """"gloo" or "nccl"."""
    node_ip: str
    device: torch.device
    deadline_seconds: float
    rendezvous: Rendezvous


def open_group(context: GroupContext, names: Sequence[str], rank: int) -> Group:
    """Meet all other ranks and open the group. `names` has the actors by rank.

    Raises DeadlineError if an actor does not come in time, LinkError for any other failure.
    """
    key, size = "all-to-all", len(names)
    context.rendezvous.meet(key, rank, {other: name for other, name in enumerate(names) if other != rank})
    try:
        if context.backend == "gloo":
            group = gloo.open_group(key, rank, size, context.node_ip, context.rendezvous)
            return GlooGroup(group, context.deadline_seconds)
        return NcclGroup(
            nccl.open_group(key, rank, size, context.device, context.rendezvous), context.deadline_seconds
        )
    except RuntimeError as error:
        raise LinkError(_PEERS, None, f"cannot come up ({error})") from error


class GlooGroup:
    """A group over gloo, whose own deadline notices a late rank."""

    def __init__(self, group: dist.ProcessGroup, deadline_seconds: float) -> None:
        self._group = group
        self._deadline_seconds = deadline_seconds
        self.size = group.size()

    def start(
        self,
        output: torch.Tensor,
        output_splits: list[int],
        source: torch.Tensor,
        source_splits: list[int],
    ) -> Callable[[int | None], None]:
        options = dist.AllToAllOptions()
        options.timeout = timedelta(seconds=self._deadline_seconds)
        deadline = Deadline(seconds=self._deadline_seconds)
        work = _begin(self._group, output, output_splits, source, source_splits, options)

        def wait(layer: int | None) -> None:
            try:
                work.wait()
            except RuntimeError as error:
                raise _explain(error, layer, deadline) from error

        return wait

    def close(self) -> None:
        gloo.close_group(self._group)


class NcclGroup:
    """A group over NCCL, whose deadline the host checks. It needs two GPUs and has not been run yet."""

    def __init__(self, group: dist.ProcessGroup, deadline_seconds: float) -> None:
        self._group = group
        self._deadline_seconds = deadline_seconds
        self._is_closed = False
        self.size = group.size()

    def start(
        self,
        output: torch.Tensor,
        output_splits: list[int],
        source: torch.Tensor,
        source_splits: list[int],
    ) -> Callable[[int | None], None]:
        deadline = Deadline(seconds=self._deadline_seconds)
        options = dist.AllToAllOptions()
        work = _begin(self._group, output, output_splits, source, source_splits, options)

        def wait(layer: int | None) -> None:
            try:
                nccl.poll(work, lambda: self._check(layer, deadline))
            except RuntimeError as error:
                raise LinkError(_PEERS, layer, f"broken ({error})") from error

        return wait

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._group.abort()

    def _check(self, layer: int | None, deadline: Deadline) -> None:
        if self._is_closed:
            raise LinkError(_PEERS, layer, "closed")
        if deadline.has_passed:
            raise DeadlineError(_PEERS, layer, "collective", deadline.seconds)


def _begin(
    group: dist.ProcessGroup,
    output: torch.Tensor,
    output_splits: list[int],
    source: torch.Tensor,
    source_splits: list[int],
    options: dist.AllToAllOptions,
) -> dist.Work:
    try:
        return group.alltoall_base(output, source, output_splits, source_splits, options)
    except RuntimeError as error:
        raise LinkError(_PEERS, None, f"broken ({error})") from error


def _explain(error: RuntimeError, layer: int | None, deadline: Deadline) -> LinkError | DeadlineError:
    if deadline.has_passed:
        return DeadlineError(_PEERS, layer, "collective", deadline.seconds)
    return LinkError(_PEERS, layer, gloo.reason(error))
