"""Measures the memory of loading, each time in a process of its own, as private memory (USS).

Private memory is the memory that no other process shares.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from actors.checkpoint.dummy.presets import preset_config
from actors.kernels.library import kernels_for
from tests.checkpoint.random_model import write_random_model

# This does what an expert actor does. A thread watches, since the peak lies between two reports of progress.
LOAD_EXPERTS = """
import json, sys, threading, torch
from actors.checkpoint.config import ModelConfig
from actors.checkpoint.reader import CheckpointReader
from actors.checkpoint.weights import validate_experts
from actors.expert.experts import GroupedExperts
from actors.linear import make_product
from actors.memory import memory_bytes

directory, experts = json.loads(sys.argv[1])
config, reader = ModelConfig.from_directory(directory), CheckpointReader(directory)
total = validate_experts(reader, config, experts)
make_product(torch.zeros(64, 64, dtype=torch.bfloat16))

cpu, done, peaks = torch.device("cpu"), threading.Event(), [0]
before = memory_bytes(cpu)

def watch():
    while not done.wait(0.001):
        peaks.append(memory_bytes(cpu))

watcher = threading.Thread(target=watch)
watcher.start()
loaded = GroupedExperts.load(reader, config, experts, torch.bfloat16)
done.set()
watcher.join()
print(json.dumps({"total": total, "peak": max(peaks) - before, "after": memory_bytes(cpu) - before}))
"""

LOAD_DENSE = """
import json, sys, threading, torch
from actors.checkpoint.config import ModelConfig
from actors.checkpoint.reader import CheckpointReader
from actors.checkpoint.weights import read_dense, validate_dense

def private_bytes():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))

directory, _ = json.loads(sys.argv[1])
config, reader = ModelConfig.from_directory(directory), CheckpointReader(directory)
total = validate_dense(reader, config)
reader.read("model.norm.weight", (config.hidden_size,)).clone().sum()
before = peak = private_bytes()

def watch(done, total):
    global peak
    peak = max(peak, private_bytes())

weights = read_dense(reader, config, torch.bfloat16, progress=watch)
print(json.dumps({"total": total, "peak": peak - before, "after": private_bytes() - before}))
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model with sixteen experts of 4.7 MB in each of twelve layers: 900 MB."""
    out_dir = tmp_path_factory.mktemp("model")
    config = dataclasses.replace(preset_config("mid"), vocab_size=4096, intermediate_size=768, num_layers=12)
    try:
        write_random_model(config, out_dir)
        yield out_dir
    finally:
        shutil.rmtree(out_dir)


def measure(script: str, directory: Path, experts: list[int]) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps([str(directory), experts])],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(
    "experts", [[3, 11], [0, 1, 2, 3, 4, 5, 6, 7]], ids=lambda experts: f"{len(experts)}"
)
def test_loading_experts_holds_their_weights_and_two_on_their_way(
    directory: Path, experts: list[int]
) -> None:
    measured = measure(LOAD_EXPERTS, directory, experts)
    assert measured["total"] == len(experts) * 12 * 3 * 768 * 1024 * 2
    held = measured["total"] * (1.0 if kernels_for(torch.bfloat16) is None else 0.754)
    assert measured["peak"] <= 1.02 * held + 2.5 * 3 * 768 * 1024 * 2
    # With less, the measurement would have missed the weights themselves.
    assert 0.95 * held <= measured["after"] <= 1.05 * held


def test_loading_the_dense_part_never_holds_it_twice(directory: Path) -> None:
    measured = measure(LOAD_DENSE, directory, [])
    assert 0.95 * measured["total"] <= measured["after"] <= 1.05 * measured["total"]
    assert measured["peak"] <= 1.2 * measured["total"]
