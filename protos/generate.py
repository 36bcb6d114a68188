"""Writes the modules for the .proto files of this folder: `python -m protos.generate`.

With `--check` it only compares. Needs grpcio-tools, a development dependency.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

PROTO_FOLDER = Path(__file__).resolve().parent
_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def generate(target: Path) -> list[Path]:
    """Write the modules of every .proto file to `target`/protos and return their paths.

    Raises RuntimeError if protoc fails.
    """
    from grpc_tools import protoc

    root = PROTO_FOLDER.parent
    protos = sorted(PROTO_FOLDER.glob("*.proto"))
    flags = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    status = protoc.main(["protoc", f"-I{root}", *flags, *(str(path) for path in protos)])
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")
    return [target / "protos" / (path.stem + suffix) for path in protos for suffix in _SUFFIXES]


def stale_modules() -> list[str]:
    """Return the names of the generated modules that do not match the .proto files."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        return [path.name for path in fresh if _text(PROTO_FOLDER / path.name) != _text(path)]


def main() -> int:
    """Write the modules, or check them; the exit status is 1 if `--check` finds one that is out of date."""
    parser = argparse.ArgumentParser(prog="python -m protos.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a module is out of date")
    if not parser.parse_args().check:
        generate(PROTO_FOLDER.parent)
        return 0
    stale = stale_modules()
    if stale:
        print(f"out of date: {', '.join(stale)}; run python -m protos.generate", file=sys.stderr)
    return 1 if stale else 0


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
