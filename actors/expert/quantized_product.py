"""y = x @ weight.T for a quantized weight on CPUs without kernels of the project, with torch's own operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from actors.checkpoint.quantized import QuantizedWeight, dequantize, from_words, to_words
from actors.linear import Product


def make_quantized_product(weight: QuantizedWeight) -> Product:
    """The product with weight [out, in], in float32. What it holds is quantized; what it widens lives for one call."""
    num_inputs, num_bits = weight.values.shape[1], weight.num_bits
    words, scales = to_words(weight.values, num_bits), weight.scales.clone()

    def product(x: torch.Tensor) -> torch.Tensor:
        whole = dequantize(QuantizedWeight(from_words(words, num_bits, num_inputs), scales, num_bits))
        return F.linear(x.float(), whole).to(x.dtype)

    return product
