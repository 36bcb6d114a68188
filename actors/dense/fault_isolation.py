"""A step that raises is computed again in halves: what cannot be computed alone fails, all else goes on.

    [a b c d] raises     [a b] is computed     [c d] raises     [c] is computed     [d] raises: d fails

One culprit among n sequences costs about 2 log2(n) steps. A chunk that runs out of memory alone is halved, too, before
it fails: its sequence's tokens are computed in two steps. Before all that a chunk is tried without its drafts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from actors.dense.scheduling.scheduler import Chunk
from actors.errors import ExchangeError, ExpertFailedError

logger = logging.getLogger(__name__)


def compute_isolated(
    chunks: list[Chunk],
    compute: Callable[[list[Chunk]], None],
    fail: Callable[[Chunk, Exception], None],
) -> bool:
    """Compute all chunks together, and where that raises, in parts; `fail` those that raise alone.

    Returns whether none failed. `compute` must take note of all of its chunks or, when it raises, of none. Raises what it raises of ExchangeErrors,
    except ExpertFailedError: they say nothing about the chunks.
    """
    error = _try(chunks, compute)
    if error is None:
        return True
    parts = _halves(chunks, error)
    if not parts:
        fail(chunks[0], error)
        return False
    if _is_out_of_memory(error) and torch.cuda.is_available():
        torch.cuda.empty_cache()
    is_all_well = True
    for part in parts:
        if is_all_well or len(chunks) > 1:  # The second half of one chunk builds on the first.
            is_all_well &= compute_isolated(part, compute, fail)
    return is_all_well


def _try(chunks: list[Chunk], compute: Callable[[list[Chunk]], None]) -> Exception | None:
    """What it raised, without the frames, which would keep the step's tensors in memory."""
    try:
        compute(chunks)
    except ExpertFailedError as error:
        logger.warning("a step of %d sequences failed: %s", len(chunks), error)
        return error.with_traceback(None)
    except ExchangeError:
        raise
    except Exception as error:
        logger.exception("a step of %d sequences failed", len(chunks))
        return error.with_traceback(None)
    return None


def _halves(chunks: list[Chunk], error: Exception) -> list[list[Chunk]]:
    """Empty for a chunk that has failed alone."""
    if len(chunks) > 1:
        middle = len(chunks) // 2
        return [chunks[:middle], chunks[middle:]]
    (chunk,) = chunks
    if chunk.drafts:
        return [[replace(chunk, drafts=())]]
    if not _is_out_of_memory(error) or chunk.num_tokens == 1:
        return []
    middle = (chunk.start + chunk.end) // 2
    return [[Chunk(chunk.sequence, chunk.start, middle)], [Chunk(chunk.sequence, middle, chunk.end)]]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError))
