"""The load and the limits that a plan must meet, and the error for a demand that no plan meets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.commands.plan.shape import Shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Load and limits. Raises ValueError that names the field, its value and what would be right."""

    prompt_tokens: int
    output_tokens: int
    context_tokens: int
    """Length of the longest sequence that must fit into the cache; at least prompt plus output."""
    target_seconds: float | None = None
    """Longest mean time between two tokens of a sequence; None for no limit."""
    rate: float | None = None
    """Requests per second; with None the plan has the most tokens per GPU."""
    max_gpus: int = 32
    max_num_sequences: int = 1024
    """Per dense actor."""
    max_micro_batches: int = 4
    dense_actors: int | None = None
    expert_actors: int | None = None
    expert_replicas: int | None = None
    """The search chooses each of the last three numbers that is None."""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "max_gpus", "max_num_sequences", "max_micro_batches"):
            _check(name, getattr(self, name), 1, None)
        if self.context_tokens < self.prompt_tokens + self.output_tokens:
            raise ValueError(
                f"context_tokens is {self.context_tokens}, expected at least prompt_tokens + output_tokens, "
                f"{self.prompt_tokens + self.output_tokens}"
            )
        for name in ("target_seconds", "rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value:g}, expected a finite number above 0")
        _check("dense_actors", self.dense_actors, 1, self.max_gpus)
        _check("expert_actors", self.expert_actors, 0, 16)
        _check("expert_replicas", self.expert_replicas, 1, 16)
        if (
            self.expert_actors
            and self.expert_replicas is not None
            and self.expert_replicas > self.expert_actors
        ):
            raise ValueError(
                f"expert_replicas is {self.expert_replicas}, "
                f"expected at most expert_actors, {self.expert_actors}"
            )

    @property
    def seen_tokens(self) -> float:
        """Positions that an output token attends to on average: the prompt and half of the output."""
        return self.prompt_tokens + self.output_tokens / 2

    def check_model(self, shape: Shape) -> None:
        """Raises ValueError if the context is longer than the model's."""
        if self.context_tokens > shape.max_position_embeddings:
            raise ValueError(
                f"context_tokens is {self.context_tokens}, "
                f"expected at most the model's {shape.max_position_embeddings}"
            )


class NoPlanError(ValueError):
    """No layout meets the demand. The message names the field, its value and what could be met."""


def _check(name: str, value: int | None, low: int, high: int | None) -> None:
    if value is not None and not low <= value <= (math.inf if high is None else high):
        raise ValueError(
            f"{name} is {value}, expected at least {low}" + (f" and at most {high}" if high else "")
        )
