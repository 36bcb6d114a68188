"""Compares the device's results with float32 references, part by part.

Legend: T tokens, H hidden, A query heads, G key-value heads, D head dimension, E experts, K = 2 experts per
token.

An error is |result - reference| / |reference| over all elements, in the Euclidean norm. For a layer, the
values that it adds to its input are compared. If two experts have nearly the same score, rounding may choose
the other one. So the reference of a layer uses the layer's own routes, and a separate check bounds how much
worse than the best scores theirs may be (the regret).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from actors.checkpoint.weights import LayerWeights, Linear, read_dense
from actors.dense.kv_cache import KVCache
from actors.dense.layers.attention import Attention
from actors.dense.layers.rope import RotaryEmbedding
from actors.dense.layers.router import make_route
from actors.dense.model import DenseModel
from actors.dense.scheduling.scheduler import Chunk
from actors.gpu_check import reference
from actors.gpu_check.build import BLOCK_SIZE, Built, Rows, last_token
from actors.gpu_check.recorder import Recorder

_LARGEST_ERROR = {torch.bfloat16: 0.01, torch.float16: 0.002, torch.float32: 1e-5}
_LARGEST_REGRET = {torch.bfloat16: 0.03, torch.float16: 0.005, torch.float32: 1e-5}
_NUM_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison."""

    name: str
    error: float
    """NaN if the result holds a NaN."""
    tolerance: float

    @property
    def is_passed(self) -> bool:
        return self.error <= self.tolerance


def run_checks(built: Built) -> Iterator[Check]:
    """Run all comparisons, one after the other."""
    with torch.inference_mode():
        yield from _check_attention(built)
        yield from _check_router(built)
        yield _check_experts(built)
        yield from _check_layer(built)


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |result - expected| / |expected| for any shape and device; NaN if either tensor holds a NaN."""
    expected = expected.float()
    return float((result.float() - expected).norm() / expected.norm())


def _check_attention(built: Built) -> Iterator[Check]:
    """Check decoding with different lengths and rope factors, a whole prompt, and a later part of one."""
    config, device, dtype = built.config, built.device, built.dtype
    rows = Rows(config)
    cases = {
        "decode": [
            last_token(rows.sequence(n, is_long)) for n, is_long in ((1, False), (77, True), (700, False))
        ],
        "whole prompt": [Chunk(rows.sequence(_NUM_TOKENS), 0, _NUM_TOKENS)],
        "later part of a prompt": [Chunk(rows.sequence(_NUM_TOKENS), 40, _NUM_TOKENS)],
    }
    cache = rows.cache(dtype, device)
    compute = Attention(config, dtype, device)
    rope = RotaryEmbedding(config.rope, config.head_dim, device)
    for name, chunks in cases.items():
        contexts = [_context(cache, chunk, device) for chunk in chunks]
        batch = built.batch(chunks).to(device)
        width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        qkv = torch.randn(len(batch.token_ids), width, dtype=dtype, device=device)
        result = compute(cache, 0, batch, qkv, rope.tables(batch.positions, batch.is_long))
        parts = torch.split(qkv.float(), [chunk.num_tokens for chunk in chunks])
        expected = [
            _attention_reference(built, chunk, context, part)
            for chunk, context, part in zip(chunks, contexts, parts, strict=True)
        ]
        error = relative_error(result, torch.cat(expected))
        yield Check(f"attention, {name}", error, _LARGEST_ERROR[dtype])


def _context(cache: KVCache, chunk: Chunk, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values [start, G, D] float32 of the positions before a chunk."""
    blocks = torch.tensor(chunk.sequence.blocks, device=device)
    slots = (blocks[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=device)).flatten()[: chunk.start]
    keys, values = cache.read(0, slots)
    return keys.float(), values.float()


def _attention_reference(
    built: Built, chunk: Chunk, context: tuple[torch.Tensor, torch.Tensor], qkv: torch.Tensor
) -> torch.Tensor:
    config = built.config
    heads = qkv.view(len(qkv), -1, config.head_dim)
    queries, keys, values = torch.split(
        heads, [config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1
    )
    positions = torch.arange(chunk.start, chunk.end, device=built.device)
    queries, keys = (
        reference.rotated(part, positions, config, chunk.sequence.is_long) for part in (queries, keys)
    )
    return reference.attention(
        queries, torch.cat((context[0], keys)), torch.cat((context[1], values)), config.sliding_window
    )


def _check_router(built: Built) -> Iterator[Check]:
    """Check the router with distant, close, equal and negative scores; its choice must be exactly the
    same."""
    config = built.config
    scores = torch.randn(512, config.num_experts, device=built.device) * 4
    scores[128:256] = (scores[128:256] * 0.01 + 3).round(decimals=2)
    scores[256:384] = -scores[256:384].abs()
    scores = scores.to(built.dtype)
    ids, weights = make_route(built.dtype, built.device)(scores, config.router_jitter)
    expected_ids, expected_weights = reference.sparse_mixer(scores.float().cpu(), config.router_jitter)
    num_wrong = int((ids.cpu() != expected_ids).any(dim=1).sum())
    yield Check("router, share of tokens with other experts", num_wrong / len(scores), 0.0)
    yield Check("router, weights", relative_error(weights.cpu(), expected_weights), 1e-5)


def _check_experts(built: Built) -> Check:
    config, device, dtype = built.config, built.device, built.dtype
    rows = torch.randn(_NUM_TOKENS, config.hidden_size, dtype=dtype, device=device)
    ids = torch.rand(_NUM_TOKENS, config.num_experts, device=device).argsort(dim=1)[:, :2].contiguous()
    weights = torch.rand(_NUM_TOKENS, 2, device=device)
    result = built.exchange.combine(built.exchange.dispatch(0, rows, ids, weights))
    expected = _experts_reference(built, rows.float(), ids, weights)
    return Check("experts", relative_error(result, expected), _LARGEST_ERROR[dtype])


def _experts_reference(
    built: Built, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the experts' output in layer 0, with the float32 weights of one expert at a time in memory."""
    out = torch.zeros_like(rows)
    for number in range(built.config.num_experts):
        tokens, choices = (ids == number).nonzero(as_tuple=True)
        result = reference.expert(rows[tokens], *built.expert(0, number))
        out.index_add_(0, tokens, result * weights[tokens, choices, None])
    return out


def _check_layer(built: Built) -> Iterator[Check]:
    """Check the first layer as the model computes it: whole prompts, then their last tokens by decoding."""
    config = replace(built.config, num_layers=1)
    weights = read_dense(built.reader, config, built.dtype, built.device)
    model = DenseModel(config, weights)
    rows = Rows(config, seed=1)
    sequences = [rows.sequence(_NUM_TOKENS) for _ in range(3)]
    cache = rows.cache(built.dtype, built.device)
    token_ids = torch.tensor([s.prompt_ids for s in sequences], device=built.device)
    x = weights.embed[token_ids].float()

    def forward(chunks: list[Chunk]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        recorder = Recorder(built.exchange)
        out = model.forward(built.batch(chunks), cache, recorder)
        return (out, *recorder.routes[0])

    ways: dict[str, tuple[list[Chunk], Callable[[torch.Tensor], torch.Tensor]]] = {
        "prompts": ([Chunk(s, 0, _NUM_TOKENS) for s in sequences], lambda rows: rows.flatten(0, 1)),
        "decode": ([last_token(s) for s in sequences], lambda rows: rows[:, -1]),
    }
    attended = torch.stack([one + _attention_branch(built, weights.layers[0], one) for one in x])
    for name, (chunks, chosen) in ways.items():
        out, ids, shares = forward(chunks)
        before, middle = chosen(x), chosen(attended)
        normed = _norm(built, middle, weights.layers[0].post_attention_norm)
        regret = _regret(F.linear(normed, weights.layers[0].gate.float()), ids)
        added = middle - before + _experts_reference(built, normed, ids, shares)
        yield Check(f"layer, {name}: routes", regret, _LARGEST_REGRET[built.dtype])
        error = relative_error(out.float() - before, added)
        yield Check(f"layer, {name}: output", error, 2 * _LARGEST_ERROR[built.dtype])
    # `out` is the result of the decoding step, launched kernel by kernel. On CUDA, serving uses a CUDA graph
    # instead: the first call captures it, the second one replays it.
    for _ in range(2):
        again = model.forward(built.batch(chunks), cache, built.exchange)
    yield Check("layer, decode: as it is served", relative_error(again, out), _LARGEST_ERROR[built.dtype])


def _attention_branch(built: Built, layer: LayerWeights, x: torch.Tensor) -> torch.Tensor:
    """Return what attention adds to one sequence x [T, H]."""
    config = built.config
    normed = _norm(built, x, layer.input_norm)
    queries, keys, values = (
        _linear(normed, part).view(len(x), -1, config.head_dim) for part in (layer.q, layer.k, layer.v)
    )
    positions = torch.arange(len(x), device=x.device)
    queries, keys = (reference.rotated(part, positions, config, is_long=False) for part in (queries, keys))
    return _linear(reference.attention(queries, keys, values, config.sliding_window), layer.o)


def _norm(built: Built, x: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    weight, bias = (part.float() for part in norm)
    return F.layer_norm(x, x.shape[-1:], weight, bias, built.config.layer_norm_eps)


def _linear(x: torch.Tensor, linear: Linear) -> torch.Tensor:
    return F.linear(x, linear.weight.float(), None if linear.bias is None else linear.bias.float())


def _regret(scores: torch.Tensor, ids: torch.Tensor) -> float:
    """Return how far the worst choice is below the best scores [T, E], relative to the token's largest."""
    best = scores.topk(2, dim=1).values
    lost = best - scores.gather(1, ids)
    regret = float((lost.abs().amax(dim=1) / scores.abs().amax(dim=1)).max())
    return regret if math.isfinite(regret) else math.nan
