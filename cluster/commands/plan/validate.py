"""Compares predicted decode rates with those in a file that `phimoe bench --decode-batch ... --json FILE`
wrote."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.commands.plan.hardware import Hardware
from cluster.commands.plan.shape import Shape
from cluster.commands.plan.step import Layout, step_cost


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Medians over all rounds, for the first server of the file."""

    prompt_tokens: int
    new_tokens: int
    tokens_per_second: dict[int, float]
    """Decode tokens per second by batch size."""

    @property
    def seen_tokens(self) -> float:
        return self.prompt_tokens + self.new_tokens / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Predicted and measured rate of one batch size."""

    batch: int
    measured_tokens_per_second: float
    predicted_tokens_per_second: float
    difference_percent: float
    """Difference in percent of the measured rate; above 0 if the prediction is too high."""
    bound_by: str


def read_measured(path: Path) -> Measured:
    """Read a file of measurements. Raises ValueError that says what is wrong in it, OSError if it cannot be
    read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        plan, rounds = content["plan"], content["rounds"]
        rates: defaultdict[int, list[float]] = defaultdict(list)
        for measurements in rounds:
            for rate in measurements[0]["decode"]:
                rates[_number(rate, "batch", int)].append(_number(rate, "decode_tokens_per_second", float))
        prompt_tokens, new_tokens = (_number(plan, name, int) for name in ("prompt_tokens", "new_tokens"))
    except (KeyError, IndexError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"validate is {str(path)!r}, expected what `phimoe bench --decode-batch 1,4 --json FILE` writes "
            f"({type(error).__name__}: {error})"
        ) from error
    if not rates:
        raise ValueError(f"validate is {str(path)!r}, expected at least one decode rate in it")
    return Measured(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        tokens_per_second={batch: statistics.median(values) for batch, values in sorted(rates.items())},
    )


def compare(shape: Shape, hardware: Hardware, layout: Layout, measured: Measured) -> list[Prediction]:
    """One prediction per batch size, the batch spread over the dense actors."""
    predictions = []
    for batch, actual in measured.tokens_per_second.items():
        own = -(-batch // layout.dense_actors)
        cost = step_cost(shape, hardware, layout, own, measured.seen_tokens)
        predicted = batch / cost.seconds
        predictions.append(
            Prediction(
                batch=batch,
                measured_tokens_per_second=actual,
                predicted_tokens_per_second=predicted,
                difference_percent=100 * (predicted / actual - 1),
                bound_by=cost.bound_by,
            )
        )
    return predictions


def _number(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0 or kind(value) != value:
        raise ValueError(f"{name} is {value!r}, expected a {'whole ' if kind is int else ''}number above 0")
    return kind(value)
