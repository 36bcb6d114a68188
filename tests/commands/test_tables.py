"""Tests all tables of the commands at the widths of terminals: no heading and no cell is cut."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from functools import partial

import pytest
from rich.console import Console

from actors.checkpoint.dummy.presets import preset_config
from cluster.commands.bench.compare import Comparison
from cluster.commands.bench.decode import DecodeRate
from cluster.commands.bench.figures import Figures, Latency
from cluster.commands.bench.prefix import PrefixTimes
from cluster.commands.bench.view import show_comparisons, show_figures, show_rates, show_times
from cluster.commands.operate import ProgressView
from cluster.commands.plan.demand import Demand
from cluster.commands.plan.hardware import hardware
from cluster.commands.plan.search import find_plan
from cluster.commands.plan.shape import model_shape
from cluster.commands.plan.validate import Prediction
from cluster.commands.plan.view import show_plan, show_predictions
from cluster.commands.status import show_status
from cluster.commands.tables import Column, show_table
from cluster.messages import ActorView, ClusterView, OperationView

WIDTHS = (60, 80, 120, 200)
MODEL = "microsoft/Phi-3.5-MoE-instruct-with-a-name-that-is-longer-than-any-terminal-of-sixty-columns"
STATES = itertools.cycle(("ready", "starting", "lost", "ready"))


def shown(width: int, show: Callable[[Console], None]) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def assert_whole(text: str, *words: str, width: int) -> None:
    """Check that nothing is cut, no line is too long, and each word is whole."""
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    found = set(text.split())
    assert not [word for phrase in words for word in phrase.split() if word not in found]


def _actor(kind: str, index: int, experts: tuple[int, ...]) -> ActorView:
    return ActorView(
        name=f"phimoe-{kind}-{index}",
        kind=kind,
        index=index,
        pid=4_194_304 - index,
        node_ip="2001:0db8:85a3:0000:0000:8a2e:0370:7334",
        device="cuda",
        state=next(STATES),
        restarts=1000 + index,
        experts=experts,
        memory_bytes=141 * 2**30,
        lost_links=("phimoe-dense-0", "phimoe-dense-1") if index == 3 else (),
        products="grouped_mm",
    )


def cluster_view(operation: OperationView | None = None) -> ClusterView:
    """A large service: 16 expert actors, each with experts that do not form a range."""
    experts = [tuple((first + 2 * step) % 16 for step in range(8)) for first in range(16)]
    actors = [_actor("dense", index, ()) for index in range(4)]
    actors += [_actor("expert", index, tuple(sorted(experts[index]))) for index in range(16)]
    return ClusterView(model=MODEL, epoch=12345, actors=tuple(actors), operation=operation)


NAMES = [actor.name for actor in cluster_view().actors]
NARROW = (
    "actor",
    "state",
    "restarts",
    "memory",
    "experts",
    "ready",
    "starting",
    "lost",
    "1015",
    "144,384 MiB",
)
WIDE = (
    "pid",
    "node",
    "device",
    "products",
    "no link to",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    "4194301",
)


@pytest.mark.parametrize("width", WIDTHS)
def test_status_shows_what_matters_at_any_width(width: int) -> None:
    text = shown(width, lambda console: show_status(console, cluster_view(), is_wide=False))
    assert_whole(text, *NARROW, *NAMES, width=width)
    assert MODEL in text.replace("\n", "") and "epoch 12345" in text
    assert not set(WIDE[0].split()) & set(text.split())
    rows = [line for line in text.splitlines() if line.startswith("phimoe-")]
    assert [row.split()[0] for row in rows] == NAMES, "an actor's name is not at the start of one line"


@pytest.mark.parametrize("width", (*WIDTHS, 40))
def test_wide_status_shows_everything_even_where_it_does_not_fit(width: int) -> None:
    text = shown(width, lambda console: show_status(console, cluster_view(), is_wide=True))
    assert_whole(text, *NARROW, *WIDE, *NAMES, width=max(width, 175))
    assert "phimoe-dense-1" in text.partition("phimoe-expert-3")[2], "a lost link is missing"


@pytest.mark.parametrize("width", WIDTHS)
def test_status_says_what_is_being_done(width: int) -> None:
    view = cluster_view(OperationView(name="scale", step="loading experts", done=3, total=8))
    text = shown(width, lambda console: show_status(console, view, is_wide=False))
    assert "scale: loading experts (3 of 8)" in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("total", [0, 8])
def test_an_operation_shows_each_actor_in_one_line(width: int, total: int) -> None:
    view = cluster_view(OperationView(name="rebalance", step="loading experts", done=total // 2, total=total))

    def show(console: Console) -> None:
        console.print(ProgressView(console, "rebalance").frame(view))

    text = shown(width, show)
    assert_whole(text, *NARROW, *NAMES, width=width)
    assert text.splitlines()[0].rstrip() == "rebalance: loading experts" + (" (4 of 8)" if total else "")
    assert ("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in text.splitlines()[1]) == bool(total)
    assert all(text.count(f"{name} ") == 1 for name in NAMES)


def test_before_anything_is_being_done_an_operation_waits() -> None:
    text = shown(60, lambda console: console.print(ProgressView(console, "drain").frame(cluster_view())))
    assert text.startswith("drain: waiting")


LONG = Latency(count=1, mean=123.456, p50=0.012345, p90=1.23456, p99=12.3456, max=599.9)
FIGURES = Figures(
    num_requests=100_000,
    num_errors=30_000,
    errors={f"HTTP 400: kind {index}: {'too long ' * 20}": 30_000 for index in range(12)},
    num_short=1,
    duration_seconds=12345.678,
    prompt_tokens=123_456_789,
    output_tokens=123_456_789,
    requests_per_second=12345.67,
    output_tokens_per_second=1234567.8,
    total_tokens_per_second=1234567.8,
    is_exact=False,
    time_to_first_token_seconds=LONG,
    inter_token_latency_seconds=LONG,
    time_per_output_token_seconds=LONG,
    end_to_end_seconds=LONG,
)
TITLE = f"https://a-host-with-a-long-name.example.com:8443 ({MODEL})"


@pytest.mark.parametrize("width", WIDTHS)
def test_figures_of_a_load_are_whole(width: int) -> None:
    text = shown(width, lambda console: show_figures(console, TITLE, FIGURES))
    names = ("time to first token", "inter-token latency", "time per output token", "end to end")
    figures = ("123456", "12.35", "1235", "12346", "599900", "1234567.8", "123456789", "70000 of 100000")
    assert_whole(text, *names, *figures, "mean", "p50", "p90", "p99", "max", width=width)
    assert text.count("30000 x HTTP 400: kind") == 10 and "and 2 other kinds of error" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_rates_and_times_are_whole(width: int) -> None:
    rate = DecodeRate(
        batch=1024,
        decode_tokens_per_second=123456.7,
        min=123456.7,
        max=123456.7,
        prefill_seconds=123.4,
        steady_tokens_per_second=123456.7,
    )
    text = shown(width, lambda console: show_rates(console, TITLE, [rate, rate]))
    assert_whole(
        text, "batch decode tokens/s min max steady prefill (ms) 1024 123400.0 123456.7", width=width
    )
    times = PrefixTimes(
        shared_tokens=100_000,
        first_seconds=123.4,
        second_seconds=1.2,
        ratio=102.8,
        min_ratio=99.9,
        max_ratio=104.2,
        cached_tokens=99_999,
    )
    text = shown(width, lambda console: show_times(console, TITLE, times))
    assert_whole(
        text, "100000 shared tokens, new known (ms) 123400.0 102.80 99.90, 104.20 99999", width=width
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_comparisons_are_whole(width: int) -> None:
    names = ("output tokens/s", "time to first token, p99 (s)", "decode tokens/s, batch 1024")
    comparisons = [
        Comparison(
            name=name,
            url="http://b",
            first_values=(0.00012345, 12345.6, 3.0),
            other_values=(0.00054321, 65432.1, 3.0),
            ratios=(0.227, 0.189, 1.0),
            median_ratio=0.227,
        )
        for name in names
    ]
    essential = ("figure first other lowest ratio highest median 3 0.227 0.189 1.000", *names)
    for is_wide in (False, True):
        text = shown(
            width, partial(show_comparisons, first_url=TITLE, comparisons=comparisons, is_wide=is_wide)
        )
        assert_whole(text, *essential, width=max(width, 170) if is_wide else width)
        assert ("round" in text.split()) == is_wide
        assert ("1.235e+04 / 6.543e+04 = 0.189" in text) == is_wide


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["h100", "cpu"])
def test_plans_are_whole(width: int, name: str) -> None:
    shape = model_shape(preset_config("phi-3.5-moe"), "auto")
    machine = hardware(name, cores=8, memory_bytes=200e9)
    demand = Demand(prompt_tokens=512, output_tokens=256, context_tokens=768, rate=0.01)
    plan = find_plan(shape, machine, demand)
    text = shown(width, lambda console: show_plan(console, TITLE, machine, plan, plan.step))
    words = (
        "sequences per dense actor",
        "KV capacity",
        "time taken by prompts",
        "exchange, one way",
        "microseconds",
    )
    assert_whole(text, *words, plan.step.bound_by, plan.batch_limit.rstrip(")"), width=width)


@pytest.mark.parametrize("width", WIDTHS)
def test_predictions_are_whole(width: int) -> None:
    prediction = Prediction(
        batch=1024,
        measured_tokens_per_second=123456.7,
        predicted_tokens_per_second=987654.3,
        difference_percent=700.0,
        bound_by="memory bandwidth of the experts on the host",
    )
    text = shown(width, lambda console: show_predictions(console, TITLE, [prediction], 25.0))
    words = "batch measured predicted difference bound by 1024 123456.7 987654.3 +700.0 %"
    assert_whole(text, words, prediction.bound_by, width=width)


def test_a_table_that_cannot_be_folded_into_the_terminal_is_wider_than_it() -> None:
    columns = (Column("a heading"), Column("words", is_number=False, is_folded=True))
    rows = [("1234567890", "these are words"), ("5", "[bold]as they are[/]")]
    text = shown(10, lambda console: show_table(console, "", columns, rows))
    assert_whole(text, "a heading words 1234567890 these are words [bold]as they are[/]", width=20)
    assert len(text.splitlines()[1].rstrip()) == 20


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_operation_stays_in_its_place_on_a_terminal_and_is_lines_elsewhere(
    is_terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    file = io.StringIO()
    view = cluster_view(OperationView(name="scale", step="loading experts", done=3, total=8))
    with ProgressView(
        Console(file=file, width=80, height=50, force_terminal=is_terminal), "scale"
    ) as shown_view:
        for _ in range(3):
            shown_view.show(view)
    lines, terminal = capsys.readouterr().out.splitlines(), file.getvalue()
    if is_terminal:
        height = 2 + 2 + len(NAMES)
        assert not lines and terminal.count("\x1b[1A") >= 3 * (height - 1), "the table moved"
    else:
        assert len(lines) == 1 and lines[0].startswith("scale: loading experts (3 of 8), epoch 12345")
        assert not terminal
