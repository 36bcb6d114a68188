"""The grouped FFN against a plain formula, and bit for bit against itself beside other experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NoReturn

import pytest
import torch
import torch.nn.functional as F

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.dummy.dummy_reader import DummyReader
from actors.checkpoint.dummy.presets import preset_config
from actors.checkpoint.weights import read_expert
from actors.errors import MissingTensorError
from actors.expert.experts import GroupedExperts

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Relative to the largest result."""


@cache
def config() -> ModelConfig:
    return preset_config("tiny")


@cache
def reader() -> DummyReader:
    return DummyReader(config())


@cache
def load(experts: tuple[int, ...], dtype: torch.dtype) -> GroupedExperts:
    return GroupedExperts.load(reader(), config(), experts, dtype)


def evenly(num_tokens: int) -> torch.Tensor:
    return torch.rand(num_tokens, 16).argsort(dim=1)[:, :2]


def to_two(num_tokens: int) -> torch.Tensor:
    return torch.tensor([[7, 2]]).repeat(num_tokens, 1)


def mostly_to_one(num_tokens: int) -> torch.Tensor:
    return torch.cat((torch.full((num_tokens, 1), 4), torch.randint(5, 16, (num_tokens, 1))), dim=1)


@cache
def float_weights(layer: int, expert: int) -> tuple[torch.Tensor, ...]:
    return tuple(weight.float() for weight in read_expert(reader(), config(), layer, expert))


def plain(layer: int, row: torch.Tensor, expert: int, weight: torch.Tensor) -> torch.Tensor:
    """The formula for one row, in float32."""
    w1, w3, w2 = float_weights(layer, expert)
    x = row.float()
    return weight * (w2 @ (F.silu(w1 @ x) * (w3 @ x)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("routes", [evenly, to_two, mostly_to_one])
@pytest.mark.parametrize("num_tokens", [1, 2, 19])
def test_a_result_is_the_formula(
    dtype: torch.dtype, routes: Callable[[int], torch.Tensor], num_tokens: int
) -> None:
    rows = torch.randn(num_tokens, config().hidden_size).to(dtype)
    ids, weights = routes(num_tokens), torch.rand(num_tokens, 2)
    results = load(tuple(range(16)), dtype).forward(1, rows, ids, weights, 2 * num_tokens)
    expected = torch.stack(
        [
            plain(1, rows[token], int(ids[token, choice]), weights[token, choice])
            for token in range(num_tokens)
            for choice in range(2)
        ]
    )
    assert results.dtype == dtype and results.shape == expected.shape
    error = (results.float() - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("experts", [(4,), (7, 2), (0, 4, 5, 11, 15), tuple(range(15, -1, -1))], ids=str)
@pytest.mark.parametrize("routes", [evenly, to_two, mostly_to_one])
def test_an_expert_gives_the_same_bits_in_any_company(
    dtype: torch.dtype, experts: tuple[int, ...], routes: Callable[[int], torch.Tensor]
) -> None:
    for num_tokens in (1, 3, 50, 700):
        rows = torch.randn(num_tokens, config().hidden_size).to(dtype)
        ids, weights = routes(num_tokens), torch.rand(num_tokens, 2)
        everything = load(tuple(range(16)), dtype).forward(0, rows, ids, weights, 2 * num_tokens)
        is_here = torch.isin(ids, torch.tensor(experts))
        part = load(experts, dtype).forward(
            0, rows, ids.masked_fill(~is_here, -1), weights, int(is_here.sum())
        )
        assert torch.equal(part, everything[is_here.view(-1)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    rows, ids = torch.randn(40, config().hidden_size).to(dtype), evenly(40)
    weights = torch.rand(40, 2)
    found = []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            found.append(load(tuple(range(16)), dtype).forward(0, rows, ids, weights, 80))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])


def test_the_weight_is_applied_in_float32_and_rounded_once() -> None:
    rows, ids = torch.randn(30, config().hidden_size).bfloat16(), evenly(30)
    weights = torch.rand(30, 2)
    experts = load(tuple(range(16)), torch.bfloat16)
    unweighted = experts.forward(0, rows, ids, torch.ones(30, 2), 60)
    expected = (unweighted.float() * weights.view(-1, 1)).bfloat16()
    assert torch.equal(experts.forward(0, rows, ids, weights, 60), expected)


def test_no_rows_give_no_results() -> None:
    hidden = config().hidden_size
    experts = load((4,), torch.float32)
    none = experts.forward(
        0, torch.empty(0, hidden), torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2), 0
    )
    assert none.shape == (0, hidden)
    elsewhere = torch.full((3, 2), -1)
    assert experts.forward(0, torch.ones(3, hidden), elsewhere, torch.ones(3, 2), 0).shape == (0, hidden)


def test_an_expert_of_another_rank_is_an_error() -> None:
    rows = torch.ones(1, config().hidden_size)
    with pytest.raises(ValueError, match="not on this rank"):
        load((4,), torch.float32).forward(0, rows, torch.tensor([[4, 5]]), torch.ones(1, 2), 2)


@pytest.mark.parametrize(("ids", "num_results"), [([[4, -1]], 2), ([[4, -1], [-1, 4]], 1)])
def test_a_wrong_count_of_results_is_an_error(ids: list[list[int]], num_results: int) -> None:
    rows = torch.ones(len(ids), config().hidden_size)
    with pytest.raises(ValueError, match=f"num_results is {num_results}"):
        load((4,), torch.float32).forward(0, rows, torch.tensor(ids), torch.ones(len(ids), 2), num_results)


def test_progress_ends_with_everything_done() -> None:
    seen: list[tuple[int, int]] = []
    experts: Sequence[int] = (3, 9)
    GroupedExperts.load(
        DummyReader(config()), config(), experts, torch.bfloat16, progress=lambda *at: seen.append(at)
    )
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) == 1 + config().num_layers * len(experts)


class CountingReader(DummyReader):
    """A reader that records the names of the tensors that are read."""

    def __init__(self) -> None:
        super().__init__(config())
        self.read_names: list[str] = []

    def read(self, name: str, expected_shape: tuple[int, ...], expected_dtype: str = "float") -> torch.Tensor:
        self.read_names.append(name)
        return super().read(name, expected_shape)


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [*((dtype, None) for dtype in DTYPES), (torch.bfloat16, "int8"), (torch.float32, "int4")],
    ids=str,
)
def test_a_change_reads_only_what_is_new_and_gives_the_same_bits(
    dtype: torch.dtype, quantization: str | None
) -> None:
    changed = GroupedExperts.load(reader(), config(), (4, 9), dtype, quantization=quantization)
    counting = CountingReader()
    changed.change(counting, config(), (2, 4, 9, 11), dtype, quantization=quantization)
    read = {name.split("experts.")[1].split(".")[0] for name in counting.read_names}
    assert read == {"2", "11"} and len(counting.read_names) == config().num_layers * 2 * 3
    changed.change(counting, config(), (2, 9), dtype, quantization=quantization)
    assert len(counting.read_names) == config().num_layers * 2 * 3 and changed.experts == (2, 9)
    rows, ids, weights = torch.randn(9, config().hidden_size).to(dtype), to_two(9), torch.rand(9, 2)
    ids[:, 0] = 9
    fresh = GroupedExperts.load(reader(), config(), (2, 9), dtype, quantization=quantization)
    for layer in range(config().num_layers):
        assert torch.equal(
            changed.forward(layer, rows, ids, weights, 18), fresh.forward(layer, rows, ids, weights, 18)
        )


def test_quantized_experts_are_made_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def read(*args: object) -> NoReturn:
        asked.append(args[2:])
        raise InterruptedError

    monkeypatch.setattr("actors.expert.experts.read_quantized_experts", read)
    with pytest.raises(InterruptedError):
        GroupedExperts.load(reader(), config(), (4, 9), torch.bfloat16, "meta", None, "fp8")
    assert asked == [([4, 9], "fp8", "meta", None)]


def test_a_change_that_failed_halfway_can_be_made_later() -> None:
    broken = DummyReader(config())
    changed = GroupedExperts.load(reader(), config(), (4,), torch.float32)

    def read(name: str, expected_shape: tuple[int, ...], expected_dtype: str = "float") -> torch.Tensor:
        if "layers.1." in name:
            raise MissingTensorError("a file", name)
        return DummyReader.read(broken, name, expected_shape)

    broken.read = read  # type: ignore[method-assign]
    with pytest.raises(MissingTensorError):
        changed.change(broken, config(), (4, 7), torch.float32)
    assert changed.experts == (4,) and changed.layer(0).experts == (4, 7)
    changed.change(reader(), config(), (4, 7), torch.float32)
    rows, ids, weights = torch.randn(3, config().hidden_size), torch.tensor([[7, 4]] * 3), torch.rand(3, 2)
    fresh = load((4, 7), torch.float32)
    for layer in range(config().num_layers):
        assert torch.equal(
            changed.forward(layer, rows, ids, weights, 6), fresh.forward(layer, rows, ids, weights, 6)
        )


def test_loading_no_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="experts is empty"):
        GroupedExperts.load(DummyReader(config()), config(), [], torch.float32)


def test_a_missing_tensor_is_named() -> None:
    reader = DummyReader(config())
    del reader._shapes["model.layers.1.block_sparse_moe.experts.9.w2.weight"]
    with pytest.raises(MissingTensorError, match=r"layers\.1\..*experts\.9\.w2"):
        GroupedExperts.load(reader, config(), [9], torch.float32)
