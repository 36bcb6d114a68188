"""The dense part of PhiMoE: everything but the experts, which an exchange reaches.

Legend: T tokens, H hidden, A query heads, G key-value heads, D head dimension, E experts, V vocabulary.

    x = x + attention(layer_norm(x))
    x = x + experts(layer_norm(x))          router here, experts behind the exchange
    logits = lm_head(layer_norm(x))
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.weights import DenseWeights, LayerWeights
from actors.dense.batch import IsShort, StepBatch, build_batch, has_one_token
from actors.dense.fast_paths.cpu_head import CpuHead
from actors.dense.fast_paths.cpu_step import CpuStep
from actors.dense.fast_paths.cuda_graphs import Experts, make_cuda_graphs
from actors.dense.kv_cache import KVCache
from actors.dense.layers.attention import Attention
from actors.dense.layers.layer import Layer
from actors.dense.layers.norm import make_add_norm, make_norm
from actors.dense.layers.norm_and_route import make_norm_and_route
from actors.dense.layers.rope import RotaryEmbedding
from actors.dense.scheduling.scheduler import Chunk
from actors.exchange.interface import Exchange
from actors.linear import make_product


class DenseModel:
    """The dense weights, in the layout that the device reads fastest. The model keeps nothing of a sequence
    between steps. One thread uses it."""

    def __init__(self, config: ModelConfig, weights: DenseWeights, quantization: str | None = None) -> None:
        """Prepare the weights. `quantization` is the format of attention's projections and of the head, as
        `dense_quantization` returns it; None leaves them as they are."""
        self.config = config
        self.device = weights.embed.device
        self.dtype = weights.embed.dtype
        self._embed = weights.embed
        self._layers = [_prepare(layer, quantization) for layer in weights.layers]
        self._norm = weights.norm
        self._lm_head = make_product(*weights.lm_head, quantization)
        self._attention = Attention(config, self.dtype, self.device)
        self._normalise = make_norm(config, self.dtype, self.device)
        self._add_norm = make_add_norm(config, self.device, self._normalise)
        self.captured = make_cuda_graphs(self._compute, self.device)
        """The CUDA graphs of steps; None if steps cannot be captured."""
        self._cpu_step = CpuStep.make(config, self._embed, self._layers)
        self.decode_head = CpuHead.make(config, self._norm, self._lm_head)
        """Computes and samples next tokens in one call; None if `logits` and a sampler do this."""
        self.is_short: IsShort = has_one_token if self._cpu_step is None else self._cpu_step.is_short
        """Whether the tokens of a chunk are decoding rows."""
        self._norm_and_route = make_norm_and_route(config, self.dtype, self.device, self._add_norm)
        self._rope = RotaryEmbedding(config.rope, config.head_dim, self.device)

    @torch.inference_mode()
    def step(self, chunks: list[Chunk], cache: KVCache, exchange: Exchange) -> torch.Tensor:
        """Return the last layer's output [T, H], before the final norm, for the rows of `chunks`; short
        chunks must come first. Write the rows' keys and values to the cache.

        The next call may overwrite the result. Raises ExchangeError, and IndexError for a token that the
        model does not have. After an error nothing but the cache rows of this step has changed.
        """
        if self._cpu_step is not None and self.is_short(chunks[-1]):
            return self._cpu_step.forward(chunks, cache, exchange)
        batch = build_batch(chunks, cache.block_size, self.config.sliding_window, self.is_short)
        return self.forward(batch, cache, exchange)

    @torch.inference_mode()
    def forward(self, batch: StepBatch, cache: KVCache, exchange: Exchange) -> torch.Tensor:
        """Do the same as `step` for a batch on the host, as a CUDA graph or operation by operation."""
        if self.captured is not None:
            captured = self.captured.forward(batch, cache, exchange)
            if captured is not None:
                return captured
        batch = batch.to(self.device)

        def experts(
            layer: int, rows: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
        ) -> torch.Tensor:
            return exchange.combine(exchange.dispatch(layer, rows, expert_ids, weights))

        return self._compute(batch, cache, experts)

    def _compute(self, batch: StepBatch, cache: KVCache, experts: Experts) -> torch.Tensor:
        x = F.embedding(batch.token_ids, self._embed)
        tables = self._rope.tables(batch.positions, batch.is_long)
        normed = self._normalise(x, self._layers[0].input_norm)
        added: torch.Tensor | None = None
        for index, layer in enumerate(self._layers):
            if added is not None:
                x, normed = self._add_norm(x, added, layer.input_norm)
            attended = self._attention(cache, index, batch, layer.qkv(normed), tables)
            x, normed, *routes = self._norm_and_route(x, layer.out(attended), layer)
            added = experts(index, normed, *routes)
        return x if added is None else x + added

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Scores [rows, V] float32 of the next token for rows [rows, H] of the result of `forward`."""
        return self._lm_head(self._normalise(x, self._norm)).float()


def _prepare(layer: LayerWeights, quantization: str | None) -> Layer:
    parts = (layer.q, layer.k, layer.v)
    biases = [part.bias for part in parts if part.bias is not None]
    return Layer(
        input_norm=layer.input_norm,
        qkv=make_product(
            torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None, quantization
        ),
        out=make_product(*layer.o, quantization),
        post_attention_norm=layer.post_attention_norm,
        gate=make_product(layer.gate),
    )
