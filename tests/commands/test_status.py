"""Tests what `phimoe status` prints."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from actors.protocol.messages import EngineCounters, Load
from cluster.commands.status import ranges, show_status
from cluster.messages import ClusterView
from tests.support.views import actor_view


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((3,), "3"), ((0, 1, 2), "0-2"), ((0, 1, 5, 8, 9), "0-1 5 8-9"), ((1, 3), "1 3")],
)
def test_experts_are_shown_as_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert ranges(numbers) == text


def test_wide_status_has_every_figure_of_a_dense_actor() -> None:
    load = Load(**{name: 1000 + index for index, name in enumerate(Load.__struct_fields__)})
    counters = EngineCounters(
        **{name: 2000 + index for index, name in enumerate(EngineCounters.__struct_fields__)}
    )
    actors = (actor_view("dense", "dense", load=load, counters=counters), actor_view("other"))
    view = ClusterView(model="m", epoch=1, actors=actors)
    console = Console(width=60, file=io.StringIO(), force_terminal=False)
    show_status(console, view, is_wide=True)
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["figure", "dense"] in lines
    for record in (load, counters):
        for name in record.__struct_fields__:
            assert [*name.split("_"), f"{getattr(record, name):,}"] in lines
