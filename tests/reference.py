"""One plain PhiMoE in one process: the definition with which all other results are compared.

A whole sequence is computed in one pass, without a cache, a batch or a placement. Nothing here comes from
`actors/`.

T tokens, S same tokens as keys, H hidden, V vocabulary, E experts, F expert width, D head dim, N query heads,
G kv heads, R = N / G query heads per kv head
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The values of config.json that decide the arithmetic, the same for both dialects."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    layer_norm_eps: float
    sliding_window: int | None
    jitter: float
    attention_bias: bool
    lm_head_bias: bool
    tie_word_embeddings: bool
    rope_theta: float
    original_max: int | None
    """Number of tokens up to which the short list holds; None is plain rope, which has one list of ones."""
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    short_mscale: float
    long_mscale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """The routing in one layer: the first and the second expert of each token, and their weights."""

    scores: Tensor  # [T, E] float32
    expert_ids: Tensor  # [T, 2] int64
    weights: Tensor  # [T, 2] float32, neither normalised nor adding up to one


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A loaded checkpoint. All weights are in `dtype`."""

    config: Config
    weights: dict[str, Tensor]
    dtype: torch.dtype

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype = torch.float32) -> "Reference":
        """Read a checkpoint directory. For a missing file, key or tensor Python's own error is raised."""
        index = directory / "model.safetensors.index.json"
        files = {"model.safetensors"}
        if index.exists():
            files = set(json.loads(index.read_text())["weight_map"].values())
        weights = {name: t.to(dtype) for file in files for name, t in load_file(directory / file).items()}
        config = parse_config(json.loads((directory / "config.json").read_text()))
        return cls(config=config, weights=weights, dtype=dtype)

    def logits(self, token_ids: list[int]) -> Tensor:
        """Return logits [T, V] in float32.

        The sequence's total length chooses the rope list of all positions.
        """
        name = "model.embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        bias = self.weights["lm_head.bias"] if self.config.lm_head_bias else None
        return F.linear(self.hidden(token_ids), self.weights[f"{name}.weight"], bias).float()

    def hidden(self, token_ids: list[int]) -> Tensor:
        """Return the states [T, H] after the final norm."""
        return self._forward(token_ids)[0]

    def routing(self, token_ids: list[int]) -> list[Routing]:
        """Return the routing of all tokens, layer by layer."""
        return self._forward(token_ids)[1]

    def greedy(
        self, prompt_ids: list[int], num_tokens: int, eos_ids: Collection[int] = ()
    ) -> list[tuple[int, float]]:
        """Return the best token and its logprob, up to `num_tokens` times, with one full forward pass each.

        End after the first of `eos_ids`, which is included. The lowest id wins a tie.
        """
        token_ids = list(prompt_ids)
        output: list[tuple[int, float]] = []
        while len(output) < num_tokens:
            logprobs = self.logits(token_ids)[-1].log_softmax(-1)
            token_id = int(logprobs.argmax())
            output.append((token_id, float(logprobs[token_id])))
            if token_id in eos_ids:
                break
            token_ids.append(token_id)
        return output

    def _forward(self, token_ids: list[int]) -> tuple[Tensor, list[Routing]]:
        x = self.weights["model.embed_tokens.weight"][torch.tensor(token_ids)]  # [T, H]
        cos, sin = rope_tables(self.config, len(token_ids))
        routings: list[Routing] = []
        for layer in range(self.config.num_layers):
            at = f"model.layers.{layer}"
            x = x + self._attention(self._norm(x, f"{at}.input_layernorm"), f"{at}.self_attn", cos, sin)
            y = self._norm(x, f"{at}.post_attention_layernorm")
            routing = sparse_mixer(self._linear(y, f"{at}.block_sparse_moe.gate"), self.config.jitter)
            x = x + self._experts(y, routing, f"{at}.block_sparse_moe.experts")
            routings.append(routing)
        return self._norm(x, "model.norm"), routings

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.config.layer_norm_eps)

    def _linear(self, x: Tensor, name: str, has_bias: bool = False) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"] if has_bias else None)

    def _attention(self, x: Tensor, at: str, cos: Tensor, sin: Tensor) -> Tensor:
        c = self.config
        num_tokens = len(x)
        q, k, v = (self._linear(x, f"{at}.{name}_proj", c.attention_bias) for name in "qkv")
        q_NTD = rotate(q.view(num_tokens, c.num_heads, c.head_dim).transpose(0, 1), cos, sin)
        k_GSD = rotate(k.view(num_tokens, c.num_kv_heads, c.head_dim).transpose(0, 1), cos, sin)
        v_GSD = v.view(num_tokens, c.num_kv_heads, c.head_dim).transpose(0, 1)
        q_GRTD = q_NTD.reshape(c.num_kv_heads, -1, num_tokens, c.head_dim)
        scores_GRTS = (q_GRTD @ k_GSD[:, None].transpose(-1, -2)).float() / c.head_dim**0.5
        scores_GRTS = scores_GRTS.masked_fill(~visible(num_tokens, c.sliding_window), float("-inf"))
        out_GRTD = scores_GRTS.softmax(-1).to(self.dtype) @ v_GSD[:, None]
        out = out_GRTD.flatten(0, 1).transpose(0, 1).reshape(num_tokens, -1)  # [T, N * D]
        return self._linear(out, f"{at}.o_proj", c.attention_bias)

    def _experts(self, x: Tensor, routing: Routing, at: str) -> Tensor:
        out = torch.zeros(x.shape, dtype=torch.float32)  # [T, H]
        for expert in range(self.config.num_experts):
            tokens, choice = torch.where(routing.expert_ids == expert)
            rows = x[tokens]
            rows = F.silu(self._linear(rows, f"{at}.{expert}.w1")) * self._linear(rows, f"{at}.{expert}.w3")
            rows = self._linear(rows, f"{at}.{expert}.w2").float() * routing.weights[tokens, choice, None]
            out.index_add_(0, tokens, rows)
        return out.to(self.dtype)


def sparse_mixer(scores: Tensor, jitter: float) -> Routing:
    """Route by gate scores [T, E]: sparse mixer (arXiv 2409.12136) as used at inference, in float32.

    The quotient of a zero score and a zero maximum is NaN, and NaN does not drop an expert. The condition is
    therefore "drop where greater", not "keep where at most". The lowest id wins a tie.
    """
    scores = scores.float()

    def choose(candidates: Tensor) -> tuple[Tensor, Tensor]:
        best, expert_ids = candidates.max(-1, keepdim=True)  # [T, 1]
        is_dropped = (best - scores) / scores.abs().clamp(min=best) > 2 * jitter
        kept = candidates.masked_fill(is_dropped, float("-inf"))
        return expert_ids, kept.softmax(-1).gather(-1, expert_ids)

    first_ids, first_weights = choose(scores)
    second_ids, second_weights = choose(scores.scatter(-1, first_ids, float("-inf")))
    return Routing(
        scores=scores,
        expert_ids=torch.cat([first_ids, second_ids], -1),
        weights=torch.cat([first_weights, second_weights], -1),
    )


def rope_tables(config: Config, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin [T, D] for a sequence of `num_tokens`, with products in float32 and with mscale."""
    is_long = config.original_max is not None and num_tokens > config.original_max
    factor = torch.tensor(config.long_factor if is_long else config.short_factor, dtype=torch.float32)
    mscale = config.long_mscale if is_long else config.short_mscale
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    inv_freq = 1.0 / (factor * config.rope_theta**exponents)  # [D / 2]
    angles = torch.outer(torch.arange(num_tokens, dtype=torch.float32), inv_freq).repeat(1, 2)
    return angles.cos() * mscale, angles.sin() * mscale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [heads, T, D] by the tables, in float32. Component i pairs with i + D / 2."""
    low, high = x.float().chunk(2, -1)
    return (x.float() * cos + torch.cat([-high, low], -1) * sin).to(x.dtype)


def visible(num_tokens: int, sliding_window: int | None) -> Tensor:
    """Return [T, S] bool: whether position t sees position s, that is t - window < s <= t."""
    t, s = torch.arange(num_tokens)[:, None], torch.arange(num_tokens)
    mask = s <= t
    return mask if sliding_window is None else mask & (s > t - sliding_window)


def parse_config(values: dict[str, Any]) -> Config:
    """Read a config of the original dialect (`rope_scaling`) or of the newer dialect (`rope_parameters`)."""
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    is_longrope = rope.get("rope_type", rope.get("type", "default")) == "longrope"
    original_max = rope.get(
        "original_max_position_embeddings", values.get("original_max_position_embeddings")
    )
    if is_longrope and original_max is None:
        raise KeyError("original_max_position_embeddings")
    ones = [1.0] * (head_dim // 2)
    return Config(
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        num_kv_heads=values["num_key_value_heads"],
        head_dim=head_dim,
        num_experts=values["num_local_experts"],
        layer_norm_eps=values["rms_norm_eps"],
        sliding_window=values.get("sliding_window"),
        jitter=values["router_jitter_noise"],
        attention_bias=values.get("attention_bias", False),
        lm_head_bias=values.get("lm_head_bias", False),
        tie_word_embeddings=values.get("tie_word_embeddings", False),
        rope_theta=rope.get("rope_theta", values.get("rope_theta", 1e6)),
        original_max=original_max if is_longrope else None,
        short_factor=tuple(rope["short_factor"] if is_longrope else ones),
        long_factor=tuple(rope["long_factor"] if is_longrope else ones),
        short_mscale=rope["short_mscale"] if is_longrope else 1.0,
        long_mscale=rope["long_mscale"] if is_longrope else 1.0,
    )
