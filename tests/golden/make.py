"""Makes the golden files with transformers 4.57.6, in a virtual environment of its own.

usage: python -m tests.golden.make [--environment DIR] [--out DIR]

That version needs huggingface_hub below 1, which this project's own environment does not have. An environment
is created in DIR if DIR holds none yet. Without --environment a temporary one is created and deleted
afterwards.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.golden.record import DIRECTORY

TORCH = ["torch==2.13.0"]
PACKAGES = ["transformers==4.57.6", "safetensors", "huggingface_hub<1", "numpy"]
REPOSITORY = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the golden files with transformers 4.57.6.")
    parser.add_argument("--environment", type=Path, help="virtual environment to use or to make")
    parser.add_argument("--out", type=Path, default=DIRECTORY)
    args = parser.parse_args()
    if args.environment is not None:
        make(args.environment, args.out)
        return
    with tempfile.TemporaryDirectory() as environment:
        make(Path(environment), args.out)


def make(environment: Path, out: Path) -> None:
    """Write every golden file into `out`. Raises CalledProcessError if the installation or a pass fails."""
    python = environment.absolute() / "bin" / "python"
    if not python.exists():
        # There are two calls, since torch may come from another index than the other packages.
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *TORCH], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    out.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = [python, "-m", "tests.golden.forward", out.absolute()]
    # The checkpoints are local, so nothing may be downloaded; modules of other environments must not be
    # visible.
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONPATH": ""}
    subprocess.run(command, check=True, cwd=REPOSITORY, env=variables)


if __name__ == "__main__":
    main()
