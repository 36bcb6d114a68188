"""Turns the experts' products, in the order of `sort.py`, into weighed results in the order of the tokens.

Legend: T tokens, H hidden, K experts per token, N = T * K entries (token, choice).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from actors.gpu.experts.sort import Entries

_FEATURES = 1024
"""Features per program."""


def weigh(products: torch.Tensor, entries: Entries, weights: torch.Tensor) -> torch.Tensor:
    """Return results [num_results, H], as `GroupedExperts.forward` does, for products of the same shape.

    The weights are [T, K].
    """
    results = torch.empty_like(products)
    num_results, hidden = products.shape
    _weigh[(num_results, triton.cdiv(hidden, _FEATURES))](
        products,
        entries.order,
        entries.targets,
        weights.contiguous(),
        results,
        HIDDEN=hidden,
        FEATURES=_FEATURES,
        num_warps=4,
    )
    return results


def weigh_and_add(products: torch.Tensor, entries: Entries, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum of each token's results [T, H] for products [N, H] and weights [T, K].

    The results are added in the order of the choices. An entry that is not local adds nothing.
    """
    num_tokens, hidden = weights.shape[0], products.shape[1]
    total = torch.empty((num_tokens, hidden), dtype=products.dtype, device=products.device)
    _weigh_and_add[(num_tokens, triton.cdiv(hidden, _FEATURES))](
        products,
        entries.places,
        weights.contiguous(),
        total,
        NUM_CHOICES=entries.num_choices,
        HIDDEN=hidden,
        FEATURES=_FEATURES,
        num_warps=4,
    )
    return total


@triton.jit
def _weigh(
    products,
    order,
    targets,
    weights,
    results,
    HIDDEN: tl.constexpr,
    FEATURES: tl.constexpr,
):
    place = tl.program_id(0)
    at = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    mask = at < HIDDEN
    weight = tl.load(weights + tl.load(order + place))
    product = tl.load(products + place.to(tl.int64) * HIDDEN + at, mask=mask, other=0.0).to(tl.float32)
    target = tl.load(targets + place).to(tl.int64)
    tl.store(results + target * HIDDEN + at, (product * weight).to(results.dtype.element_ty), mask=mask)


@triton.jit
def _weigh_and_add(
    products,
    places,
    weights,
    total,
    NUM_CHOICES: tl.constexpr,
    HIDDEN: tl.constexpr,
    FEATURES: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    mask = at < HIDDEN
    kind = total.dtype.element_ty
    added = tl.zeros((FEATURES,), kind)
    for choice in tl.static_range(NUM_CHOICES):
        entry = token * NUM_CHOICES + choice
        place = tl.load(places + entry).to(tl.int64)
        is_here = mask & (place >= 0)
        product = tl.load(products + place * HIDDEN + at, mask=is_here, other=0.0).to(tl.float32)
        result = (product * tl.load(weights + entry)).to(kind)
        added = (added.to(tl.float32) + result.to(tl.float32)).to(kind)
    tl.store(total + token * HIDDEN + at, added, mask=mask)
