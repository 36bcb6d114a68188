"""Tests how the memory of a process is measured."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from actors.memory import memory_bytes

SIZE = 64 << 20
CPU = torch.device("cpu")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say")
def test_memory_that_is_written_to_counts_and_a_mapped_file_does_not(tmp_path: Path) -> None:
    before = memory_bytes(CPU)
    kept = torch.ones(SIZE, dtype=torch.uint8)
    assert SIZE * 0.9 < memory_bytes(CPU) - before < SIZE * 1.5

    path = tmp_path / "weights"
    path.write_bytes(bytes(kept.numpy()))
    before = memory_bytes(CPU)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == SIZE // mmap.PAGESIZE  # The whole file is resident now.
        assert memory_bytes(CPU) - before < SIZE * 0.5
