"""A step that raises is computed again in halves: chunks that cannot be computed alone fail, and all others
go on.

    [a b c d] raises     [a b] is computed     [c d] raises     [c] is computed     [d] raises: d fails

One chunk that cannot be computed costs about 2 log2(n) steps among n sequences. A chunk with drafts that
raises alone is first tried without its drafts. A chunk that runs out of memory alone is halved as well before
it fails; the tokens of its sequence are then computed in two steps.
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
    """Compute all chunks together or, if that raises, in parts; call `fail` for those that raise alone.

    Return whether all chunks were computed. `compute` must commit all of its chunks or, if it raises, none.
    An ExchangeError of `compute` is raised again because it says nothing about the chunks, except
    ExpertFailedError, which does.
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
    """The exception that `compute` raised, or None. Its traceback is removed, because the frames would keep
    the step's tensors in memory."""
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
    """The parts of a step to try next; empty for a chunk that has failed alone."""
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
