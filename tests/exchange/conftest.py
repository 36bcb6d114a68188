from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.exchange.processes import ExpertProcesses


@pytest.fixture(scope="package")
def processes() -> Iterator[ExpertProcesses]:
    made = ExpertProcesses()
    yield made
    made.close()


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
