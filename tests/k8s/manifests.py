"""Reads the manifests for the tests: rendered overlays, and the pods that a RayService would make."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "k8s"
OVERLAYS = ("cpu", "gpu")

Manifest = dict[str, Any]


@functools.cache
def _rendered(overlay: str, kubectl: str) -> str:
    command = [kubectl, "kustomize", str(FOLDER / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"kustomize warns: {done.stderr}"
    return done.stdout


def render(overlay: str) -> list[Manifest]:
    """Return every object of an overlay. Skips the test if kubectl is not installed."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which renders the overlays, is not installed")
    return list(yaml.safe_load_all(_rendered(overlay, kubectl)))


def of_kind(objects: list[Manifest], kind: str) -> Manifest:
    """Return the only object of this kind."""
    (found,) = (item for item in objects if item["kind"] == kind)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The head or a worker group."""

    name: str
    replicas: int
    start_params: dict[str, str]
    template: Manifest

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the group's pods."""
        labels: dict[str, str] = self.template["metadata"]["labels"]
        return labels

    @property
    def container(self) -> Manifest:
        """The container that runs Ray."""
        (container,) = self.template["spec"]["containers"]
        assert isinstance(container, dict)
        return container


def groups(objects: list[Manifest]) -> Iterator[Group]:
    """Yield the head's group, then the worker groups."""
    cluster = of_kind(objects, "RayService")["spec"]["rayClusterConfig"]
    head = cluster["headGroupSpec"]
    yield Group(name="head", replicas=1, start_params=head["rayStartParams"], template=head["template"])
    for worker in cluster["workerGroupSpecs"]:
        yield Group(
            name=worker["groupName"],
            replicas=worker["replicas"],
            start_params=worker["rayStartParams"],
            template=worker["template"],
        )


def serve_config(objects: list[Manifest]) -> Manifest:
    """Return the RayService's serveConfigV2, parsed."""
    config = yaml.safe_load(of_kind(objects, "RayService")["spec"]["serveConfigV2"])
    assert isinstance(config, dict)
    return config
