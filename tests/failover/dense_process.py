"""Runs a dense actor with all its experts in a process of its own.

The process prints its addresses, and ends when its input ends. Arguments: index, token, tokens per step,
drafts per sequence; and optionally the step and the layer before which the process kills itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence

import torch

from actors.dense.actor import DenseActor
from actors.dense.speculation import speculator
from actors.dense.speculation.draft_budget import StepCost
from actors.exchange.interface import Handle
from actors.exchange.local import LocalExchange
from actors.protocol.messages import DenseMember, Membership
from actors.protocol.settings import DenseSettings, ExchangeSettings, ModelSource

_LOAD_SECONDS = 60.0


def main() -> None:
    index, token, max_batch_tokens, max_drafts = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5])
    if max_drafts > 0:
        speculator.draft_counts = _all_of_them  # type: ignore[attr-defined]
    if len(sys.argv) > 5:
        die_at(int(sys.argv[5]), int(sys.argv[6]))
    actor = DenseActor(
        DenseSettings(
            index=index,
            source=ModelSource(model=None),
            exchange=ExchangeSettings(transport="local"),
            dtype="float32",
            max_num_sequences=16,
            max_batch_tokens=max_batch_tokens,
            speculative_tokens=max_drafts,
            kv_cache_bytes=64 << 20,
            cluster_token=token,
        )
    )
    actor.start_loading()
    give_up = time.monotonic() + _LOAD_SECONDS
    while actor.progress().state not in ("loaded", "ready"):
        if actor.progress().state == "failed" or time.monotonic() > give_up:
            raise SystemExit(f"not loaded: {actor.progress()}")
        time.sleep(0.01)
    host, port, store_host, store_port = actor.listen()
    member = DenseMember(index=index, store_host=store_host, store_port=store_port)
    actor.join(Membership(epoch=1, dense=(member,), experts=()))
    print(json.dumps([host, port]), flush=True)
    sys.stdin.read()
    actor.stop()


def _all_of_them(
    acceptance: Sequence[float], limits: Sequence[int], budget: int, cost: StepCost
) -> list[int]:
    """Compute drafts whatever they cost on this machine."""
    return list(limits)


def die_at(step: int, layer: int) -> None:
    """Kill the process before a layer of a step; both count from 0.

    With layer 0 it dies between two steps.
    """
    dispatch, num_steps = LocalExchange.dispatch, 0

    def trapped(
        exchange: LocalExchange,
        at_layer: int,
        rows: torch.Tensor,
        expert_ids: torch.Tensor,
        weights: torch.Tensor,
    ) -> Handle:
        nonlocal num_steps
        num_steps += at_layer == 0
        if (num_steps - 1, at_layer) == (step, layer):
            os.kill(os.getpid(), signal.SIGKILL)
        return dispatch(exchange, at_layer, rows, expert_ids, weights)

    LocalExchange.dispatch = trapped  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
