"""Fixtures that several folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.end_to_end.running import Running, serving
from tests.support.small_checkpoints import CATALOGUE, Spec, write

# An example may take as long as a busy machine needs. Every test has a timeout all the same.
hypothesis.settings.register_profile("phimoe", deadline=None)
hypothesis.settings.load_profile("phimoe")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread. Small products gain nothing from a second thread, and lose much if its core is busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write every checkpoint of the catalogue once; return the folders by name."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {spec.name: write(spec, _new_directory(root, spec)) for spec in CATALOGUE}


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Start one service for all tests that need no service of their own.

    It is the tiny model in float32 with two expert actors over links.
    """
    with serving(tmp_path_factory.mktemp("service"), "--expert-actors", "2", "--dtype", "float32") as running:
        yield running


def _new_directory(root: Path, spec: Spec) -> Path:
    directory = root / spec.name
    directory.mkdir()
    return directory
