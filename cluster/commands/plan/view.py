"""Shows plans and predictions as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from cluster.commands.plan.hardware import Hardware
from cluster.commands.plan.search import Plan
from cluster.commands.plan.step import StepCost
from cluster.commands.plan.validate import Prediction
from cluster.commands.tables import Column, show_table


def show_plan(console: Console, title: str, hardware: Hardware, plan: Plan, single: StepCost | None) -> None:
    """Print a plan. single: the cost of the same batch in one micro-batch, if the plan has several."""
    layout, device = plan.layout, "GPU" if hardware.kind == "gpu" else "host"
    experts = str(layout.expert_actors) if layout.expert_actors else "0 (--exchange local)"
    prompts = f"{plan.prefill_share * 100:.1f} %" if plan.prefill_share else "not counted without --rate"
    rows = (
        ("dense actors", str(layout.dense_actors)),
        ("expert actors", experts),
        ("expert replicas", str(layout.expert_replicas)),
        ("micro-batches", str(layout.micro_batches)),
        ("sequences per dense actor", f"{plan.batch:,}"),
        (f"at most (by {plan.batch_limit})", f"{plan.max_batch:,}"),
        ("KV capacity per dense actor", f"{plan.cache_tokens:,} tokens"),
        ("", f"{plan.cache_sequences:,} sequences"),
        ("time between tokens", f"{plan.inter_token_seconds * 1e3:.2f} ms"),
        ("time taken by prompts", prompts),
        ("output tokens/s", f"{plan.tokens_per_second:,.1f}"),
        (f"output tokens/s per {device}", f"{plan.tokens_per_second_per_gpu:,.1f}"),
        ("bound by", plan.step.bound_by),
    )
    show_table(console, title, (Column("figure", is_number=False, is_folded=True), Column("value")), rows)
    parts = (
        ("dense", plan.step.dense_seconds),
        ("experts", plan.step.expert_seconds),
        ("exchange, one way", plan.step.link_seconds),
    )
    times = [(name, f"{seconds * 1e6:.1f}") for name, seconds in parts]
    show_table(console, "", (Column("per layer", is_number=False), Column("microseconds")), times)
    if single is not None:
        console.print(
            f"This version computes a step in one micro-batch; "
            f"then a step takes {single.seconds * 1e3:.2f} ms instead of {plan.step.seconds * 1e3:.2f} ms. "
            "--max-micro-batches 1 plans for that."
        )


def show_predictions(
    console: Console, title: str, predictions: Sequence[Prediction], tolerance: float
) -> None:
    """Print decode tokens/s, one row per batch size. Differences above the tolerance are red."""
    columns = (
        *map(Column, ("batch", "measured", "predicted", "difference")),
        Column("bound by", is_number=False, is_folded=True),
    )
    rows = [
        (
            str(row.batch),
            f"{row.measured_tokens_per_second:.1f}",
            f"{row.predicted_tokens_per_second:.1f}",
            Text(
                f"{row.difference_percent:+.1f} %", "red" if abs(row.difference_percent) > tolerance else ""
            ),
            row.bound_by,
        )
        for row in predictions
    ]
    show_table(console, f"decode tokens/s: {title}", columns, rows)
