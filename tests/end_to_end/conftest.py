"""One service for all tests of this folder that do not need their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.running import Running, serving


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The tiny model in float32 with two expert actors over links."""
    with serving(tmp_path_factory.mktemp("service"), "--expert-actors", "2", "--dtype", "float32") as running:
        yield running
