"""Opens NCCL groups, and lets the host wait for their work. It needs two GPUs and has not been run yet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Work

from actors.exchange.rendezvous import Rendezvous

_POLL_SECONDS = 20e-6
_POLLS_PER_CHECK = 50


def open_group(
    key: str, rank: int, size: int, device: torch.device, rendezvous: Rendezvous
) -> dist.ProcessGroup:
    """Open a nonblocking communicator whose ranks meet under a key. Raises RuntimeError, as torch does."""
    # Otherwise torch's watchdog ends the process when a peer dies. Here a dead peer only ends its link.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    options = dist.ProcessGroupNCCL.Options()
    options.config.blocking = 0
    options._timeout = rendezvous.deadline.remaining
    with torch.cuda.device(device):
        group = dist.ProcessGroupNCCL(rendezvous.prefixed(key), rank, size, options)
        group.eager_connect_single_device(device)
    # The backend has the methods of a ProcessGroup, which torch's stubs do not say.
    return cast(dist.ProcessGroup, group)


def poll(work: Work, check: Callable[[], None]) -> None:
    """Wait until the device has done the work; call `check`, which may raise, about once a millisecond."""
    num_polls = 0
    while not work.is_completed():
        num_polls += 1
        if num_polls % _POLLS_PER_CHECK == 0:
            check()
        time.sleep(_POLL_SECONDS)
    work.wait()
