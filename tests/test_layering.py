"""Imports point one way: cluster -> actors -> torch; Ray core and torch.distributed are called in one folder each."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imports(folder: str) -> Iterator[tuple[str, str]]:
    """(file, imported module) for every import below a folder, also those inside functions."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: relative import"
                yield from ((name, f"{node.module}.{alias.name}") for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_cluster_imports_no_torch() -> None:
    assert [item for item in imports("cluster") if within(item[1], "torch")] == []


def test_actors_import_neither_ray_nor_cluster() -> None:
    assert [item for item in imports("actors") if within(item[1], "ray") or within(item[1], "cluster")] == []


def test_ray_core_is_called_in_one_folder() -> None:
    core = {
        file
        for file, module in imports("cluster")
        if within(module, "ray") and not within(module, "ray.serve")
    }
    assert core
    assert all(file.startswith("cluster/ray_actors/") for file in core)


def test_torch_distributed_is_used_in_one_folder() -> None:
    users = {file for file, module in imports("actors") if within(module, "torch.distributed")}
    assert users
    assert all(file.startswith("actors/exchange/") for file in users)


@pytest.mark.parametrize(
    "module",
    [
        "cluster.commands.serve",
        "cluster.ingress.service",
        "cluster.ingress.http.routes",
        "cluster.ingress.grpc.serving",
    ],
)
def test_the_front_door_loads_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "module",
    [
        "cluster.supervisor.membership.membership",
        "cluster.supervisor.placement.placement",
        "cluster.config.cluster_config",
        "cluster.requests.request",
    ],
)
def test_pure_code_loads_without_ray(module: str) -> None:
    code = f"import sys, {module}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
