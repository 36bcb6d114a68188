"""The structures of a decoding step. Their fields are those of `c/tasks.h`, in the same order."""

from __future__ import annotations

import ctypes

from actors.kernels.quantization import Quantization

_ADDRESS, _COUNT, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int


class ProductWeights(ctypes.Structure):
    """A packed weight with its bias."""

    _fields_ = (("packed", _ADDRESS), ("bias", _ADDRESS), ("quantized", Quantization))


class NormWeights(ctypes.Structure):
    """Gain and shift of a LayerNorm."""

    _fields_ = (("gain", _ADDRESS), ("shift", _ADDRESS))


class LayerWeights(ctypes.Structure):
    """The weights of a layer without its experts, and its cache."""

    _fields_ = (
        ("input_norm", NormWeights),
        ("qkv", ProductWeights),
        ("out", ProductWeights),
        ("post_attention_norm", NormWeights),
        ("gate", ProductWeights),
        ("keys", _ADDRESS),
        ("values", _ADDRESS),
    )


class LayerTask(ctypes.Structure):
    """A step of decoding sequences."""

    _fields_ = (
        ("x", _ADDRESS),
        ("combined", _ADDRESS),
        ("normed", _ADDRESS),
        ("qkv", _ADDRESS),
        ("attended", _ADDRESS),
        ("scores", _ADDRESS),
        ("expert_ids", _ADDRESS),
        ("expert_weights", _ADDRESS),
        ("cos", _ADDRESS),
        ("sin", _ADDRESS),
        ("slots", _ADDRESS),
        ("block_table", _ADDRESS),
        ("starts", _ADDRESS),
        ("ends", _ADDRESS),
        ("num_sequences", _COUNT),
        ("hidden_size", _COUNT),
        ("num_heads", _COUNT),
        ("num_groups", _COUNT),
        ("head_dim", _COUNT),
        ("table_stride", _COUNT),
        ("block_size", _COUNT),
        ("num_experts", _COUNT),
        ("eps", _FLOAT),
        ("jitter", _FLOAT),
        ("is_bf16", _INT),
        ("num_threads", _INT),
    )


class RowsTask(ctypes.Structure):
    """What the rows of a step are filled from."""

    _fields_ = (
        ("rows", _ADDRESS),
        ("embedding", _ADDRESS),
        ("cos_tables", _ADDRESS * 2),
        ("sin_tables", _ADDRESS * 2),
        ("vocabulary", _COUNT),
        ("window", _COUNT),
    )


class HeadTask(ctypes.Structure):
    """The last layer's rows whose next tokens are asked for, and what their tokens are computed with."""

    _fields_ = (
        ("x", _ADDRESS),
        ("picked", _ADDRESS),
        ("norm", NormWeights),
        ("product", ProductWeights),
        ("normed", _ADDRESS),
        ("scores", _ADDRESS),
        ("logits", _ADDRESS),
        ("filters", _ADDRESS),
        ("token_ids", _ADDRESS),
        ("num_rows", _COUNT),
        ("hidden_size", _COUNT),
        ("vocabulary", _COUNT),
        ("eps", _FLOAT),
        ("is_bf16", _INT),
        ("num_threads", _INT),
    )
