"""Tests that imports point one way: between packages, between the rooms of a package, and in every folder.

cluster -> actors -> torch. Only one folder calls Ray core, and only one calls torch.distributed.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "actors", "protos")

# A room is a file or folder directly in a package. It may import rooms of its own line and of lines below.
CLUSTER_ROOMS = (
    ("__main__",),
    ("commands",),
    ("app",),
    ("ingress",),
    ("ray_actors", "requests"),
    ("supervisor", "openai"),
    ("config", "kinds", "messages", "errors", "tokenizer", "timeouts", "process"),
)
ACTORS_ROOMS = (
    ("gpu_check",),
    ("dense",),
    ("expert",),
    ("linear",),
    ("gpu", "background_load"),
    ("exchange", "checkpoint"),
    ("protocol",),
    ("errors", "kernels", "memory", "devices"),
)


def imports(folder: str) -> Iterator[tuple[str, str]]:
    """Return (file, imported module) for every import below a folder, imports inside functions included."""
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


def module_graph() -> dict[str, set[str]]:
    """Map each module to the project's modules that it imports, under TYPE_CHECKING or in functions, too."""
    files = {name: path for package in PACKAGES for name, path in _modules(package)}
    graph: dict[str, set[str]] = {}
    for package in PACKAGES:
        for file, imported in imports(package):
            targets = (imported, imported.rpartition(".")[0])
            target = next((name for name in targets if name in files), None)
            if target is not None:
                graph.setdefault(_module_name(ROOT / file), set()).add(target)
    return graph


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    return ((_module_name(path), path) for path in (ROOT / package).rglob("*.py"))


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def cycle_of(graph: Mapping[str, set[str]]) -> list[str]:
    """Return one cycle of the graph, or an empty list."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def folder_graphs() -> dict[str, dict[str, set[str]]]:
    """Map each folder to the graph of its direct files and folders, from the imports of all code in them."""
    folders: defaultdict[str, dict[str, set[str]]] = defaultdict(dict)
    for importer, targets in module_graph().items():
        for target in targets:
            source_parts, target_parts = importer.split("."), target.split(".")
            num_common = 0
            for source_part, target_part in zip(source_parts, target_parts, strict=False):
                if source_part != target_part:
                    break
                num_common += 1
            if num_common < min(len(source_parts), len(target_parts)):
                rooms = folders[".".join(source_parts[:num_common])]
                rooms.setdefault(source_parts[num_common], set()).add(target_parts[num_common])
    return folders


def test_a_cycle_is_found_where_there_is_one() -> None:
    assert cycle_of({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not cycle_of({"a": {"b", "c"}, "b": {"c"}})


def test_modules_import_each_other_without_a_cycle() -> None:
    graph = module_graph()
    assert "actors.dense.engine" in graph["actors.dense.actor"]
    assert cycle_of(graph) == []


def test_imports_run_one_way_in_every_folder() -> None:
    graphs = folder_graphs()
    assert "dense" in graphs["actors"]["gpu_check"]
    assert {folder: cycle for folder, rooms in graphs.items() if (cycle := cycle_of(rooms))} == {}


@pytest.mark.parametrize(("package", "order"), [("cluster", CLUSTER_ROOMS), ("actors", ACTORS_ROOMS)])
def test_rooms_import_only_rooms_below(package: str, order: tuple[tuple[str, ...], ...]) -> None:
    height = {room: -index for index, line in enumerate(order) for room in line}
    present = {name.split(".")[1] for name, _ in _modules(package) if "." in name}
    assert present == set(height)
    upwards = {
        (room, target)
        for room, targets in folder_graphs()[package].items()
        for target in targets
        if height[target] > height[room]
    }
    assert upwards == set()


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
        "cluster.ingress.grpc.services",
    ],
)
def test_ingress_and_commands_load_without_torch(module: str) -> None:
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
