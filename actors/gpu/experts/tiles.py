"""Chooses the sizes of the tiles in which experts' matrices are multiplied. Pure.

The sizes were chosen on an H200 with the shapes of Phi-3.5-MoE (`actors/gpu_check/README.md`). With few rows
per expert only the number of weight bytes that are being loaded counts; with more rows, several rows share
each weight that is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_FEW, _SOME, _MANY = 8, 16, 64
"""Average numbers of entries per slot up to which each choice of tiles applies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Rows, outputs and inputs that one program multiplies at a time."""

    rows: int
    outputs: int
    inputs: int
    num_stages: int
    """Number of tiles that are loaded at the same time."""
    num_warps: int


def choose_tiles(
    num_entries: int, num_slots: int, item_bytes: int, is_quantized: bool = False
) -> tuple[Tile, Tile]:
    """Return the tile of the first product, which has two weights per output, and of the second product.

    `item_bytes` is the size of a row's element. A program that reads quantized weights converts them to the
    rows' dtype, so that it can keep fewer of them.
    """
    wide, narrow = 256 // item_bytes, 128 // item_bytes
    if num_entries <= _FEW * num_slots:
        first = Tile(rows=16, outputs=32, inputs=wide, num_stages=4, num_warps=4)
        return first, first if is_quantized else replace(first, outputs=64)
    if num_entries <= _SOME * num_slots:
        first = Tile(rows=32, outputs=64, inputs=narrow, num_stages=4, num_warps=4)
        return first, replace(first, num_stages=3)
    if num_entries <= _MANY * num_slots:
        first = Tile(rows=64, outputs=64, inputs=narrow, num_stages=3 if is_quantized else 4, num_warps=4)
        return first, replace(first, outputs=128 if is_quantized else 64, num_stages=3)
    first = Tile(rows=128, outputs=128, inputs=narrow, num_stages=4, num_warps=8)
    if is_quantized:
        first = replace(first, outputs=64, num_stages=3)
        return first, replace(first, outputs=128, num_warps=4)
    return first, replace(first, num_stages=3)
