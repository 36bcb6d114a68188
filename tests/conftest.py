"""Fixtures that several folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.end_to_end.running import Running, serving
from tests.support.small_checkpoints import CATALOGUE, Spec, write

# An example may take as long as a busy machine makes it take; every test has a timeout all the same.
hypothesis.settings.register_profile("phimoe", deadline=None)
hypothesis.settings.load_profile("phimoe")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small products gain nothing from a second thread, and lose much where other work holds its core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every checkpoint of the catalogue, written once, by name."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {spec.name: write(spec, _new_directory(root, spec)) for spec in CATALOGUE}


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One service for all tests that do not need their own: the tiny model in float32, two expert actors over links."""
    with serving(tmp_path_factory.mktemp("service"), "--expert-actors", "2", "--dtype", "float32") as running:
        yield running


def _new_directory(root: Path, spec: Spec) -> Path:
    directory = root / spec.name
    directory.mkdir()
    return directory
