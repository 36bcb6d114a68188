"""What a prefix that was computed before is worth: the time to the first token without and with it.

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
    """Which pairs of prompts are sent, and how many."""

    shared_tokens: int
    own_tokens: int
    """Of each prompt, behind the shared ones."""
    new_tokens: int
    repeat: int
    vocab: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("shared_tokens", "own_tokens", "new_tokens", "repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")

    def fitted(self, vocab: int, max_model_len: int | None) -> PrefixPlan:
        """The same for a model with this vocabulary and context; what is too long is cut from the shared tokens."""
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
        """How long prompts and answers are, in words."""
        return f"{self.shared_tokens} shared, {self.own_tokens} prompt and {self.new_tokens} output tokens"

    @property
    def num_runs(self) -> int:
        """Prompts sent, warm-up included."""
        return 2 * (1 + self.repeat)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTimes:
    """Times to the first token, in seconds; medians over the pairs."""

    shared_tokens: int
    first_seconds: float
    second_seconds: float
    ratio: float
    """first / second of each pair, the median."""
    min_ratio: float
    max_ratio: float
    cached_tokens: int | None
    """Of the second prompts, tokens that the server found computed; the fewest. None where it does not say."""


async def prefix_times(
    client: aiohttp.ClientSession, target: Target, plan: PrefixPlan, tick: Callable[[], None]
) -> PrefixTimes:
    """Raises BenchError when a call fails or is not streamed, since no time is then true."""

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
    """Two prompts that differ behind their shared tokens; another seed makes others from the first token on."""

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
