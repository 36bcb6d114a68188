"""Measures the decode rate of a batch through HTTP, as an engine's own benchmark defines it.

    decode rate = batch * new / (time for new + 1 tokens - time for 1 token)

Both times run from sending the whole batch at once to the end of its last answer, each over fresh random
prompts, so that prefill and the cost of a request cancel out. The steady rate beside it
(`figures.steady_rate`) looks at one run only, at the span in which every call of the batch decodes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import aiohttp

from cluster.commands.bench.client import BenchError, Outcome, Target
from cluster.commands.bench.figures import steady_rate
from cluster.commands.bench.load import closed_loop
from cluster.commands.bench.workload import RandomCalls, Span, fit_lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePlan:
    """The batch sizes to measure, and how often to measure each."""

    batches: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    repeat: int
    vocab: int
    seed: int
    phrase_tokens: int | None = None
    """The same as `RandomCalls.phrase_tokens`."""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if min(self.batches, default=0) < 1:
            raise ValueError(f"batches is {self.batches}, expected sizes from 1 on")

    def fitted(self, vocab: int, max_model_len: int | None) -> DecodePlan:
        """This plan for a model with this vocabulary and context. The context must hold one token beyond
        `new_tokens`."""
        if max_model_len is None:
            return replace(self, vocab=vocab)
        prompt, new = (Span(low=count, high=count) for count in (self.prompt_tokens, self.new_tokens))
        prompt, new = fit_lengths(prompt, new, max_model_len - 1)
        return replace(self, vocab=vocab, prompt_tokens=prompt.high, new_tokens=new.high)

    @property
    def lengths(self) -> str:
        """A sentence part that says how long prompts and answers are."""
        return f"{self.prompt_tokens} prompt tokens and {self.new_tokens} output tokens"

    @property
    def num_runs(self) -> int:
        """Number of batches sent, including the warm-up."""
        return 1 + 2 * self.repeat * len(self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRate:
    """Decode rate of one batch size in tokens per second, and its prefill in seconds; medians over the
    repetitions."""

    batch: int
    decode_tokens_per_second: float
    min: float
    max: float
    prefill_seconds: float
    """Seconds until every sequence of the batch has one token."""
    steady_tokens_per_second: float | None
    """The rate while all calls decode; None without streaming, or if the calls never all decoded at once."""


async def decode_rates(
    client: aiohttp.ClientSession, target: Target, plan: DecodePlan, tick: Callable[[], None]
) -> list[DecodeRate]:
    """Measure one figure per batch size. Raises BenchError if a call fails or ends early: no rate is true
    then."""
    seed = plan.seed

    async def run(batch: int, max_tokens: int) -> list[Outcome]:
        nonlocal seed
        seed += 1
        prompts = RandomCalls(
            endpoint=target.endpoint,
            prompt_tokens=Span(low=plan.prompt_tokens, high=plan.prompt_tokens),
            output_tokens=Span(low=max_tokens, high=max_tokens),
            vocab=plan.vocab,
            phrase_tokens=plan.phrase_tokens,
        )
        outcomes = await closed_loop(client, target, prompts.make(batch, seed), batch, lambda _: None)
        _check(outcomes, target)
        tick()
        return outcomes

    await run(
        max(plan.batches), min(4, plan.new_tokens + 1)
    )  # This opens the connections that the largest batch needs.
    rates = []
    for batch in plan.batches:
        firsts, decodes, steadies = [], [], []
        for _ in range(plan.repeat):
            first = _seconds(await run(batch, 1))
            outcomes = await run(batch, plan.new_tokens + 1)
            decodes.append(_rate(batch * plan.new_tokens, _seconds(outcomes) - first))
            firsts.append(first)
            steadies.append(steady_rate(outcomes))
        known = [rate for rate in steadies if rate is not None]
        rates.append(
            DecodeRate(
                batch=batch,
                decode_tokens_per_second=statistics.median(decodes),
                min=min(decodes),
                max=max(decodes),
                prefill_seconds=statistics.median(firsts),
                steady_tokens_per_second=statistics.median(known) if len(known) == len(steadies) else None,
            )
        )
    return rates


def _seconds(outcomes: list[Outcome]) -> float:
    return max(o.ended_seconds for o in outcomes) - min(o.sent_seconds for o in outcomes)


def _rate(tokens: int, seconds: float) -> float:
    if seconds <= 0:
        raise BenchError(f"{tokens} tokens took no measurable time: ask for more output tokens")
    return tokens / seconds


def _check(outcomes: list[Outcome], target: Target) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            raise BenchError(f"{target.url}: {outcome.error}")
        if outcome.num_output_tokens != outcome.max_tokens:
            raise BenchError(
                f"{target.url}: asked for {outcome.max_tokens} tokens, got {outcome.num_output_tokens}"
            )
