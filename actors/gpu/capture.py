"""Captures CUDA graphs. All graphs share one pool of memory, since they never run at the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class CudaCapture:
    """Captures work that reads and writes the same memory whenever it runs.

    A call returns a function that runs the work again, and the tensor that then holds its result. Call it in
    the thread that will run the work again.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        # As torch requires, the work first runs once on another stream, so that kernels are compiled and
        # libraries allocate their workspace.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = work()
        self._pool = graph.pool()
        return graph.replay, out
