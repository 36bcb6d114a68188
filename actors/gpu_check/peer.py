"""Times the same work with transformers, if it is installed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from actors.checkpoint.config import ModelConfig
from actors.checkpoint.dummy.presets import original_dialect
from actors.gpu_check.clock import median_seconds


class Peer:
    """PhimoeForCausalLM with random weights and attention by torch's SDPA; all else is transformers'
    default."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Raises ImportError if transformers is not installed or does not know the model."""
        if importlib.util.find_spec("transformers") is None:
            raise ImportError("transformers is not installed")
        transformers: Any = importlib.import_module("transformers")
        self._config, self._dtype, self._device = config, dtype, device
        self._make_cache = transformers.DynamicCache
        self.version: str = transformers.__version__
        content = original_dialect(config)
        values = {
            key: content[key] for key in content if key not in ("architectures", "model_type", "torch_dtype")
        }
        with torch.device(device):
            self._model = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model("phimoe", **values), dtype=dtype, attn_implementation="sdpa"
            )
        self._model.eval()
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if not name.endswith("norm.weight"):
                    parameter.normal_(0, 0.02)

    @torch.inference_mode()
    def decode_seconds(self, batch: int, context: int, num_repeats: int) -> float:
        """Return the time of a step of `batch` sequences, each with `context` cached tokens.

        The step ends when the ids of the best tokens are on the host.
        """
        cache, config = self._make_cache(), self._config
        shape = (batch, config.num_kv_heads, context, config.head_dim)
        for layer in range(config.num_layers):
            keys, values = (torch.randn(shape, dtype=self._dtype, device=self._device) for _ in range(2))
            cache.update(keys, values, layer)
        ids = torch.randint(config.vocab_size, (batch, 1), device=self._device)

        def step() -> None:
            self._model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1].argmax(
                -1
            ).tolist()

        return median_seconds(step, self._device, num_repeats)

    @torch.inference_mode()
    def prefill_seconds(self, num_tokens: int, num_repeats: int) -> float:
        """Return the time of one prompt, computed at once, until the first token's id is on the host."""
        ids = torch.randint(self._config.vocab_size, (1, num_tokens), device=self._device)

        def prompt() -> None:
            self._model(input_ids=ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()

        return median_seconds(prompt, self._device, num_repeats)
