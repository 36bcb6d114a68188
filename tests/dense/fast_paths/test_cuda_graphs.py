"""Whole engines whose decoding steps are CUDA graphs, compared with the reference token for token.

Without CUDA the kernels run in Triton's interpreter, and a captured step is computed again at the same
addresses when it is repeated; all else is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.gpu.device import DEVICE, MARKS

# isort: split

from actors import linear
from actors.dense import model
from actors.dense.fast_paths import cuda_graphs
from actors.dense.fast_paths.cpu_step import CpuStep
from actors.dense.layers import attention, norm, norm_and_route, router
from actors.expert import experts
from tests.dense.local_engine import LocalEngine, greedy
from tests.dense.test_exact import assert_batch_equals_reference, assert_equals_reference, prompt
from tests.support.small_checkpoints import ORIGINAL_MAX

pytestmark = MARKS


class Rerun:
    """Stands for a graph: replaying computes the step again."""

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        out = work().clone()

        def replay() -> None:
            out.copy_(work())

        return replay, out


class CannotCapture:
    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture(autouse=True)
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the choices that are made for CUDA on every device."""
    if DEVICE.type == "cuda":
        return

    def yes(device: torch.device) -> bool:
        return True

    def product(
        weight: torch.Tensor, bias: torch.Tensor | None = None, quantization: str | None = None
    ) -> linear.DeviceProduct:
        assert quantization is None
        return linear.DeviceProduct(weight.contiguous(), bias)

    def no_kernels(*_: object) -> None:
        return None

    for module in (attention, cuda_graphs, norm, router, norm_and_route, linear, experts):
        monkeypatch.setattr(module, "has_triton", yes)
    monkeypatch.setattr(model, "make_product", product)
    monkeypatch.setattr(cuda_graphs, "CudaCapture", Rerun)
    monkeypatch.setattr(CpuStep, "make", no_kernels)


@pytest.mark.parametrize("name", ["like-the-real-one", "window-16"])
def test_tokens_are_the_references(small_checkpoints: dict[str, Path], name: str) -> None:
    """One sequence crosses to LongRoPE's long list, another is long from the start, and they end one by
    one."""
    engine = LocalEngine(small_checkpoints[name], num_blocks=1024, max_batch_tokens=256, device=DEVICE.type)
    lengths = ((1, 3), (ORIGINAL_MAX - 2, 5), (ORIGINAL_MAX + 90, 6))
    cases = [(prompt(num_tokens, num_tokens), num_new) for num_tokens, num_new in lengths]
    assert_batch_equals_reference(engine, small_checkpoints[name], cases)
    assert engine.captured_sizes


def test_three_sequences_are_padded_to_four(small_checkpoints: dict[str, Path]) -> None:
    directory = small_checkpoints["like-the-real-one"]
    engine = LocalEngine(directory, device=DEVICE.type)
    assert_batch_equals_reference(engine, directory, [(prompt(5, index), 3) for index in range(3)])
    assert engine.captured_sizes == {(4, 1, 64)}


def test_drafts_are_rows_of_a_captured_step(small_checkpoints: dict[str, Path]) -> None:
    directory = small_checkpoints["like-the-real-one"]
    engine = LocalEngine(directory, num_blocks=64, max_drafts=3, device=DEVICE.type)
    prompt_ids = prompt(4, 2) * 5
    engine.submit("a", prompt_ids, greedy(12))
    engine.run()
    assert_equals_reference(engine, directory, "a", prompt_ids, 12)
    assert engine.captured_sizes


def test_graphs_are_made_anew_for_another_exchange(small_checkpoints: dict[str, Path]) -> None:
    directory = small_checkpoints["like-the-real-one"]
    engine, other = (LocalEngine(directory, device=DEVICE.type) for _ in range(2))
    made_for = []
    for sequence_id, exchange in (("a", engine.exchange), ("b", other.exchange)):
        engine.engine.use_exchange(exchange)
        engine.submit(sequence_id, prompt(9, 1), greedy(3))
        engine.run()
        assert_equals_reference(engine, directory, sequence_id, prompt(9, 1), 3)
        assert engine.captured_sizes
        assert engine.model.captured is not None
        made_for.append(engine.model.captured.made_for)
    assert made_for[0] != made_for[1]


def test_what_cannot_be_captured_goes_launch_by_launch(
    small_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda_graphs, "CudaCapture", CannotCapture)
    directory = small_checkpoints["like-the-real-one"]
    engine = LocalEngine(directory, device=DEVICE.type)
    engine.submit("a", prompt(9, 1), greedy(4))
    engine.run()
    assert_equals_reference(engine, directory, "a", prompt(9, 1), 4)
    assert not engine.captured_sizes
    assert [record.getMessage() for record in caplog.records].count(
        "decoding goes on without CUDA graphs: operation not permitted when stream is capturing"
    ) == 1
