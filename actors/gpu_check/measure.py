"""Measures how long decoding steps and prompts take, and how long they must take at least."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from actors.dense.sampling.cuda_sampler import make_sampler
from actors.dense.scheduling.scheduler import Chunk
from actors.gpu_check.build import Built, Rows, last_token
from actors.gpu_check.clock import median_seconds
from actors.gpu_check.profile import KernelTime, kernel_times
from actors.gpu_check.recorder import Recorder
from actors.gpu_check.work import Device, Work, step_work


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One row of the report."""

    name: str
    num_tokens: int
    """Number of tokens that the work computes."""
    seconds: float
    limit_seconds: float
    num_experts_per_layer: float | None
    """Average number of experts with rows in a layer; None for prompts."""
    kernels: list[KernelTime]
    """Kernels of one repetition, the longest first; empty if they were not asked for."""

    def as_json(self) -> dict[str, object]:
        rate = self.num_tokens / self.seconds
        return asdict(self) | {"tokens_per_second": rate, "share_of_limit": self.limit_seconds / self.seconds}


def time_decode(
    built: Built, device: Device, batch: int, context: int, num_repeats: int, with_kernels: bool
) -> Timing:
    """Time a greedy step in which each of `batch` sequences decodes one token after `context` others.

    The time is from the host's lists of tokens to the sampled ids on the host. Every repetition has the same
    tokens.
    """
    rows = Rows(built.config)
    chunks = [last_token(rows.sequence(context + 1)) for _ in range(batch)]
    cache = rows.cache(built.dtype, built.device)
    sequences = [chunk.sequence for chunk in chunks]
    model, sample = built.model, make_sampler(built.device)

    def step() -> None:
        rows = built.batch(chunks)
        logits = model.logits(model.forward(rows, cache, built.exchange))
        sample(logits, sequences, built.config.eos_token_ids)

    recorder = Recorder(built.exchange)
    model.forward(built.batch(chunks), cache, recorder)
    num_experts = sum(len(set(ids.flatten().tolist())) for ids, _ in recorder.routes)
    spans = [(context, context + 1)] * batch
    work = _work(built, spans, batch, num_experts)
    return Timing(
        name=f"decode, batch {batch}, {context} tokens of context",
        num_tokens=batch,
        seconds=median_seconds(step, built.device, num_repeats),
        limit_seconds=work.limit_seconds(device),
        num_experts_per_layer=num_experts / built.config.num_layers,
        kernels=kernel_times(step, built.device) if with_kernels else [],
    )


def time_prefill(
    built: Built, device: Device, num_tokens: int, chunk_tokens: int, num_repeats: int, with_kernels: bool
) -> Timing:
    """Time one prompt, computed chunk by chunk, until the first token's id is on the host."""
    rows = Rows(built.config)
    sequence = rows.sequence(num_tokens)
    cache = rows.cache(built.dtype, built.device)
    model, sample = built.model, make_sampler(built.device)
    spans = [(start, min(start + chunk_tokens, num_tokens)) for start in range(0, num_tokens, chunk_tokens)]

    def prompt() -> None:
        for span in spans:
            batch = built.batch([Chunk(sequence, *span)])
            x = model.forward(batch, cache, built.exchange)
        sample(model.logits(x[-1:]), [sequence], built.config.eos_token_ids)

    # A chunk has many tokens, so every expert has rows.
    num_experts = built.config.num_experts * built.config.num_layers
    work = Work(num_bytes=0, flops=0)
    for start, end in spans:
        num_logits = int(end == num_tokens)
        work += _work(built, [(start, end)], num_logits, num_experts)
    return Timing(
        name=f"prefill, {num_tokens} tokens in chunks of {chunk_tokens}",
        num_tokens=num_tokens,
        seconds=median_seconds(prompt, built.device, num_repeats),
        limit_seconds=work.limit_seconds(device),
        num_experts_per_layer=None,
        kernels=kernel_times(prompt, built.device) if with_kernels else [],
    )


def _work(built: Built, spans: list[tuple[int, int]], num_logits: int, num_experts: int) -> Work:
    item_bytes, expert_item_bytes = built.dtype.itemsize, built.expert_item_bytes
    return step_work(built.config, item_bytes, expert_item_bytes, spans, num_logits, num_experts)
