"""The sizes to which steps are padded, so that few CUDA graphs serve all steps. Pure."""

from __future__ import annotations

BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_LEAST_BLOCKS = 64


def batch_bucket(num_rows: int) -> int | None:
    """Return the smallest size that holds `num_rows` >= 1 decoding rows, or None if there is none."""
    return next((size for size in BATCHES if size >= num_rows), None)


def blocks_bucket(num_blocks: int) -> int:
    """Return the size for the blocks of the longest sequence: a power of two, at least 64."""
    return max(_LEAST_BLOCKS, 1 << max(0, num_blocks - 1).bit_length())


def parts_bucket(num_parts: int) -> int:
    """Return the size for the parts of the longest context: the next power of two."""
    return 1 << max(0, num_parts - 1).bit_length()
