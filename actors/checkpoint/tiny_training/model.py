"""A PhiMoE that can be trained: its forward pass computes the same as serving, in plain torch.

Legend: B sequences, L length, T = B * L tokens, H hidden, D head dim, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.checkpoint.tiny_training.experts import Experts
from actors.checkpoint.tiny_training.tokenizer import VOCAB_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyShape:
    """The sizes of the tiny model."""

    hidden: int = 128
    expert_width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    num_experts: int = 16
    vocab: int = VOCAB_SIZE
    crossing: int = 128
    """`original_max_position_embeddings`: longer sequences use the long factors."""
    max_positions: int = 2048
    jitter: float = 0.01
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    short_mscale: float = 1.1
    long_mscale: float = 1.25

    @property
    def head_dim(self) -> int:
        return self.hidden // self.num_heads

    @property
    def short_factor(self) -> list[float]:
        """Factors of the rotary frequencies: 1.0, 1.02, 1.04 and so on."""
        return [round(1.0 + 0.02 * i, 4) for i in range(self.head_dim // 2)]

    @property
    def long_factor(self) -> list[float]:
        """Factors from 1 for the fastest frequency to `max_positions / crossing` for the slowest."""
        stretch, last = self.max_positions / self.crossing, self.head_dim // 2 - 1
        return [round(stretch ** (i / last), 4) for i in range(last + 1)]

    def hf_config(self) -> dict[str, Any]:
        """Return the content of config.json in the dialect of the original PhiMoE checkpoint."""
        return {
            "architectures": ["PhiMoEForCausalLM"],
            "model_type": "phimoe",
            "attention_bias": True,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 3,
            "hidden_act": "silu",
            "hidden_dropout": 0.0,
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "input_jitter_noise": self.jitter,
            "intermediate_size": self.expert_width,
            "lm_head_bias": True,
            "max_position_embeddings": self.max_positions,
            "num_attention_heads": self.num_heads,
            "num_experts_per_tok": 2,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "num_local_experts": self.num_experts,
            "original_max_position_embeddings": self.crossing,
            "output_router_logits": False,
            "rms_norm_eps": self.norm_eps,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": self.long_factor,
                "long_mscale": self.long_mscale,
                "original_max_position_embeddings": self.crossing,
                "short_factor": self.short_factor,
                "short_mscale": self.short_mscale,
            },
            "rope_theta": self.rope_theta,
            "router_aux_loss_coef": 0.0,
            "router_jitter_noise": self.jitter,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab,
        }


class TinyPhiMoE(nn.Module):
    """The whole model. `forward` takes whole sequences, without a cache."""

    def __init__(self, shape: TinyShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab)
        _initialise(self)

    def forward(self, ids_BL: Tensor, is_long_B: Tensor, wanted_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [wanted positions, V], in the order of the positions, and the routers' balance loss.

        `is_long_B` says which sequences use the long factors: those of more than `crossing` tokens. The
        balance loss is 1 if every layer loads its experts evenly.
        """
        rope = _rope_tables(self.shape, ids_BL.shape[1], is_long_B)
        x_BLH = self.embed_tokens(ids_BL)
        balance = x_BLH.new_zeros(())
        for layer in self.layers:
            x_BLH, layer_balance = layer(x_BLH, rope)
            balance = balance + layer_balance / len(self.layers)
        return self.lm_head(self.norm(x_BLH[wanted_BL])), balance

    def hf_tensors(self) -> dict[str, Tensor]:
        """Return the parameters in float32, under their names in a PhiMoE checkpoint."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.state_dict().items():
            prefix, _, last = name.rpartition(".")
            if last == "w13":
                for expert, w13 in enumerate(parameter):
                    w1, w3 = w13.chunk(2)
                    tensors[f"model.{prefix}.experts.{expert}.w1.weight"] = w1
                    tensors[f"model.{prefix}.experts.{expert}.w3.weight"] = w3
            elif last == "w2":
                for expert, w2 in enumerate(parameter):
                    tensors[f"model.{prefix}.experts.{expert}.w2.weight"] = w2
            else:
                tensors[name if name.startswith("lm_head") else f"model.{name}"] = parameter
        return tensors


class Layer(nn.Module):
    def __init__(self, shape: TinyShape) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.LayerNorm(shape.hidden, eps=shape.norm_eps)
        self.block_sparse_moe = Experts(shape.hidden, shape.expert_width, shape.num_experts, shape.jitter)

    def forward(self, x_BLH: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x_BLH = x_BLH + self.self_attn(self.input_layernorm(x_BLH), rope)
        y_TH, balance = self.block_sparse_moe(self.post_attention_layernorm(x_BLH).flatten(0, 1))
        return x_BLH + y_TH.view_as(x_BLH), balance


class Attention(nn.Module):
    def __init__(self, shape: TinyShape) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = shape.num_heads, shape.num_kv_heads
        self.head_dim = shape.head_dim
        kv_width = shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.hidden)
        self.k_proj = nn.Linear(shape.hidden, kv_width)
        self.v_proj = nn.Linear(shape.hidden, kv_width)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden)

    def forward(self, x_BLH: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q = self._split(self.q_proj(x_BLH), self.num_heads)
        k = self._split(self.k_proj(x_BLH), self.num_kv_heads)
        v = self._split(self.v_proj(x_BLH), self.num_kv_heads)
        q, k = _rotate(q, rope), _rotate(k, rope)
        group = self.num_heads // self.num_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged_BLH: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return merged_BLH

    def _split(self, x: Tensor, num_heads: int) -> Tensor:
        """Reshape [B, L, heads * D] to [B, heads, L, D]."""
        return x.view(*x.shape[:2], num_heads, self.head_dim).transpose(1, 2)


def _rope_tables(shape: TinyShape, length: int, is_long_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each [B, 1, L, D]; each sequence has its own factors and mscale."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    tables = []
    for factor, mscale in ((shape.short_factor, shape.short_mscale), (shape.long_factor, shape.long_mscale)):
        frequencies = 1.0 / (torch.tensor(factor) * shape.rope_theta**exponents)
        angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
        angles = torch.cat((angles, angles), dim=1)
        tables.append(torch.stack((angles.cos() * mscale, angles.sin() * mscale)))
    chosen = torch.stack(tables)[is_long_B.long()]
    return chosen[:, 0].unsqueeze(1), chosen[:, 1].unsqueeze(1)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (table.to(x.dtype) for table in rope)
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _initialise(model: TinyPhiMoE) -> None:
    """Set biases to 0 and draw weights from a normal distribution of standard deviation 1 / sqrt(inputs).

    Matrices that write into the residual stream are scaled by 1 / sqrt(number of writers). The embedding has
    the standard deviation 0.5.
    """
    residual = 1 / math.sqrt(2 * model.shape.num_layers)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() > 1:
            scale = residual if name.endswith(("o_proj.weight", "w2")) else 1.0
            std = 0.5 if name.startswith("embed") else scale / math.sqrt(parameter.shape[-1])
            nn.init.normal_(parameter, std=std)
