"""Measures what a cached prefix saves: the time to the first token without and with it.

    first prompt      [ shared tokens, new ] [ own tokens ]     time to first token: first
    second prompt     [ shared tokens      ] [ own tokens ]     time to first token: second

Every pair has shared tokens of its own, and the second prompt is sent when the first one is answered.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import aiohttp

from cluster.commands.bench.client import BenchError, Outcome, Target
from cluster.commands.bench.load import closed_loop
from cluster.commands.bench.workload import Call, RandomCalls, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixPlan:
    """The pairs of prompts to send, and their number."""

    shared_tokens: int
    own_tokens: int
    """Tokens of each prompt after the shared ones."""
    new_tokens: int
    repeat: int
    vocab: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("shared_tokens", "own_tokens", "new_tokens", "repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")

    def fitted(self, vocab: int, max_model_len: int | None) -> PrefixPlan:
        """This plan for a model with this vocabulary and context. If it is too long, fewer tokens are
        shared."""
        if max_model_len is None:
            return replace(self, vocab=vocab)
        room = max_model_len - self.own_tokens - self.new_tokens
        if room < 1:
            raise ValueError(
                f"prompt-tokens and output-tokens are {self.own_tokens} and {self.new_tokens}, "
                f"which leave no shared token in the context of {max_model_len}"
            )
        return replace(self, vocab=vocab, shared_tokens=min(self.shared_tokens, room))

    @property
    def lengths(self) -> str:
        """A sentence part that says how long prompts and answers are."""
        return f"{self.shared_tokens} shared, {self.own_tokens} prompt and {self.new_tokens} output tokens"

    @property
    def num_runs(self) -> int:
        """Number of prompts sent, including the warm-up."""
        return 2 * (1 + self.repeat)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTimes:
    """Times to the first token, in seconds; medians over the pairs."""

    shared_tokens: int
    first_seconds: float
    second_seconds: float
    ratio: float
    """Median of first / second over the pairs."""
    min_ratio: float
    max_ratio: float
    cached_tokens: int | None
    """Smallest number of cached tokens among the second prompts; None if the server does not report it."""


async def prefix_times(
    client: aiohttp.ClientSession, target: Target, plan: PrefixPlan, tick: Callable[[], None]
) -> PrefixTimes:
    """Send the pairs and measure. Raises BenchError if a call fails or is not streamed: no time is true
    then."""

    async def run(call: Call) -> Outcome:
        (outcome,) = await closed_loop(client, target, [call], 1, lambda _: None)
        if outcome.error is not None:
            raise BenchError(f"{target.url}: {outcome.error}")
        if not outcome.marks:
            raise BenchError(
                f"{target.url}: no token came by itself; the time to the first one needs a stream"
            )
        tick()
        return outcome

    pairs = []
    for number in range(plan.repeat + 1):
        first, second = pair(plan, target.endpoint, plan.seed + number)
        pairs.append((await run(first), await run(second)))
    firsts, seconds = (
        [o.marks[0].seconds - o.sent_seconds for o in side] for side in zip(*pairs[1:], strict=True)
    )
    ratios = [a / b for a, b in zip(firsts, seconds, strict=True)]
    cached = [second.num_cached_tokens for _, second in pairs[1:]]
    return PrefixTimes(
        shared_tokens=plan.shared_tokens,
        first_seconds=statistics.median(firsts),
        second_seconds=statistics.median(seconds),
        ratio=statistics.median(ratios),
        min_ratio=min(ratios),
        max_ratio=max(ratios),
        cached_tokens=None if None in cached else min(count for count in cached if count is not None),
    )


def pair(plan: PrefixPlan, endpoint: str, seed: int) -> tuple[Call, Call]:
    """Two prompts that differ after their shared tokens. Another seed gives prompts that differ from the
    first token."""

    def make(num_tokens: int, count: int, salt: int) -> list[Call]:
        prompt, output = (Span(low=n, high=n) for n in (num_tokens, plan.new_tokens))
        calls = RandomCalls(endpoint=endpoint, prompt_tokens=prompt, output_tokens=output, vocab=plan.vocab)
        return calls.make(count, 2 * seed + salt)

    (shared,) = make(plan.shared_tokens, 1, 0)
    first, second = (_joined(shared, own) for own in make(plan.own_tokens, 2, 1))
    return first, second


def _joined(shared: Call, own: Call) -> Call:
    if shared.messages is None or own.messages is None:
        return replace(own, token_ids=(shared.token_ids or ()) + (own.token_ids or ()))
    words = " ".join(call["content"] for call in (*shared.messages, *own.messages))
    return replace(own, messages=({"role": "user", "content": words},))
