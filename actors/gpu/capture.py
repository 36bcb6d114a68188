"""CUDA graphs, all of them in one pool of memory: they never run side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class CudaCapture:
    """Captures work that reads and writes the same places whenever it runs. Call it in the thread that will replay.

    A call returns how to run the work again, and where its result is then.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        # Once beforehand, on another stream, as torch asks: kernels are compiled and libraries take their workspace.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = work()
        self._pool = graph.pool()
        return graph.replay, out
