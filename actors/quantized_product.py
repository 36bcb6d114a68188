"""y = x @ weight.T for a quantized weight on CPUs without kernels of the project, with torch's own operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from actors.checkpoint.quantized_weight import QuantizedWeight, dequantize, from_words, to_words


def make_quantized_product(weight: QuantizedWeight) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product with weight [out, in], in float32. What it holds is quantized; what it widens lives for one call."""
    widen = _widening(weight)
    return lambda x: F.linear(x.float(), widen()).to(x.dtype)


def _widening(weight: QuantizedWeight) -> Callable[[], torch.Tensor]:
    """What gives the weight [out, in] in float32."""
    num_inputs, num_bits = weight.values.shape[1], weight.num_bits
    scales = weight.scales.clone()
    if weight.values.dtype.is_floating_point:
        held = QuantizedWeight(weight.values.clone(), scales, num_bits)
        return lambda: dequantize(held)
    words = to_words(weight.values, num_bits)
    return lambda: dequantize(QuantizedWeight(from_words(words, num_bits, num_inputs), scales, num_bits))
