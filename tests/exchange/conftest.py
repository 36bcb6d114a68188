from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.exchange.processes import ExpertProcesses


@pytest.fixture(scope="package")
def processes() -> Iterator[ExpertProcesses]:
    made = ExpertProcesses()
    yield made
    made.close()
