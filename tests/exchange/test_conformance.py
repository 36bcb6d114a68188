"""One test body for every transport on a CPU: results are bit for bit those of `local`.

NCCL has `test_nccl.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from actors.exchange.interface import Exchange
from actors.exchange.local import LocalExchange
from actors.protocol.settings import ExchangeSettings
from tests.exchange.processes import DTYPES, ExpertProcesses, linked, load_all, spread

MAX_ROWS = 4096

TRANSPORTS = [
    pytest.param("links", "tcp", id="links-tcp"),
    pytest.param("links", "gloo", id="links-gloo"),
    pytest.param("all_to_all", "gloo", id="all-to-all-gloo"),
]

Routes = Callable[[int], torch.Tensor]
"""num_tokens -> expert_ids [T, 2], two different experts for each token."""


def spread_evenly(num_tokens: int) -> torch.Tensor:
    return torch.rand(num_tokens, 16).argsort(dim=1)[:, :2]


def all_to_the_first(num_tokens: int) -> torch.Tensor:
    return torch.tensor([[0, 1]]).repeat(num_tokens, 1)


def all_to_the_ends(num_tokens: int) -> torch.Tensor:
    return torch.tensor([[15, 0]]).repeat(num_tokens, 1)


def mostly_to_one(num_tokens: int) -> torch.Tensor:
    others = torch.randint(0, 15, (num_tokens, 1))
    return torch.cat((others, torch.full((num_tokens, 1), 15)), dim=1)


CASES: list[tuple[Routes, int]] = [
    (spread_evenly, 0),
    (spread_evenly, 1),
    (spread_evenly, 2),
    (spread_evenly, 33),
    (all_to_the_first, 1),
    (all_to_the_first, 64),
    (all_to_the_ends, 17),
    (mostly_to_one, 200),
    (spread_evenly, 3000),
]


@pytest.mark.parametrize("num_actors", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("transport", "backend"), TRANSPORTS)
def test_results_are_those_of_local(
    processes: ExpertProcesses, transport: str, backend: str, dtype: str, num_actors: int
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend, max_rows=MAX_ROWS)
    with linked(processes, settings, dtype, spread(num_actors)) as star:
        check_conformance(star.exchange, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_local_itself_passes(dtype: str) -> None:
    _, experts = load_all(DTYPES[dtype])
    check_conformance(LocalExchange(experts.forward), dtype)


@pytest.mark.parametrize(
    ("transport", "backend"), [("links", "tcp"), ("links", "gloo"), ("all_to_all", "gloo")]
)
def test_two_dense_actors_are_served_side_by_side(
    processes: ExpertProcesses, transport: str, backend: str
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend, max_rows=MAX_ROWS)
    batches("bfloat16")
    failures: list[BaseException] = []
    with linked(processes, settings, "bfloat16", spread(2), num_dense=2) as star:

        def run(exchange: Exchange) -> None:
            try:
                check_conformance(exchange, "bfloat16")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(exchange,)) for exchange in star.exchanges]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@pytest.mark.parametrize(
    ("transport", "backend"), [("links", "tcp"), ("links", "gloo"), ("all_to_all", "gloo")]
)
def test_an_idle_dense_actor_holds_up_no_other_and_can_send_again(
    processes: ExpertProcesses, transport: str, backend: str
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend, max_rows=MAX_ROWS)
    one = batches("bfloat16")[3]
    with linked(processes, settings, "bfloat16", spread(2), num_dense=2) as star:
        for exchange in (*star.exchanges, *star.exchanges):
            for _ in range(20):
                check(exchange, one)
            threading.Event().wait(0.05)


def test_rows_spread_over_replicas_give_the_same_bits(processes: ExpertProcesses) -> None:
    """Some experts have three holders, and the largest batch has enough rows to split them."""
    owned = [tuple(range(16)), (0, 1, 15), tuple(range(8, 16))]
    settings = ExchangeSettings(max_rows=MAX_ROWS)
    for dtype in DTYPES:
        with linked(processes, settings, dtype, owned) as star:
            check_conformance(star.exchange, dtype)


@pytest.mark.parametrize(
    ("transport", "backend"), [("links", "tcp"), ("links", "gloo"), ("all_to_all", "gloo")]
)
def test_a_long_pause_does_not_break_the_exchange(
    processes: ExpertProcesses, transport: str, backend: str
) -> None:
    settings = ExchangeSettings(transport=transport, backend=backend, deadline_seconds=0.7)
    with linked(processes, settings, "float32", spread(2)) as star:
        threading.Event().wait(1.6)
        check(star.exchange, batches("float32")[3])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of a dispatch, and the results that `local` gives for them."""

    name: str
    layer: int
    rows: torch.Tensor
    expert_ids: torch.Tensor
    weights: torch.Tensor
    expected: torch.Tensor


@cache
def batches(dtype: str) -> list[Batch]:
    config, experts = load_all(DTYPES[dtype])
    reference = LocalExchange(experts.forward)
    made = []
    for number, (routes, num_tokens) in enumerate(CASES):
        rows = torch.randn(num_tokens, config.hidden_size).to(DTYPES[dtype])
        ids, weights = routes(num_tokens), torch.rand(num_tokens, 2)
        layer = number % config.num_layers
        made.append(
            Batch(
                name=f"{num_tokens} tokens, {routes.__name__}",
                layer=layer,
                rows=rows,
                expert_ids=ids,
                weights=weights,
                expected=reference.combine(reference.dispatch(layer, rows, ids, weights)),
            )
        )
    return made


def check_conformance(exchange: Exchange, dtype: str) -> None:
    for one in batches(dtype):
        check(exchange, one)
    check_several_under_way(exchange, batches(dtype)[-3:])


def check(exchange: Exchange, one: Batch) -> None:
    got = exchange.combine(exchange.dispatch(one.layer, one.rows, one.expert_ids, one.weights))
    assert got.shape == one.rows.shape and got.dtype == one.rows.dtype
    assert torch.equal(got, one.expected), one.name


def check_several_under_way(exchange: Exchange, three: list[Batch]) -> None:
    """Dispatch different sizes at the same time, and combine them in another order."""
    handles = [exchange.dispatch(one.layer, one.rows, one.expert_ids, one.weights) for one in three]
    for place in (1, 0, 2):
        assert torch.equal(exchange.combine(handles[place]), three[place].expected)
