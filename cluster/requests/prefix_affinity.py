"""Estimates which prefixes a dense actor has in its cache. Pure.

The estimate follows from the sequences that this ingress replica has submitted. The actor may have evicted a
prefix, or may have got another one from another replica. A wrong estimate costs time but changes no token,
since the actor checks its own cache.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_BLOCKS = 256
"""Number of first blocks of a sequence that are compared. A longer prefix would hardly change the choice."""
_MAX_HASHES = 16_384


class PrefixIndex:
    """Hashes (`actors.protocol.prefix_hash`) of the blocks that one dense actor used most recently."""

    def __init__(self, max_hashes: int = _MAX_HASHES) -> None:
        self._max_hashes = max_hashes
        self._used: dict[bytes, None] = {}
        """The hashes, least recently used first."""

    def note(self, hashes: Sequence[bytes]) -> None:
        """Note that a sequence whose first blocks have these hashes was submitted.

        The end of a prefix counts as used before its beginning, so that the end is forgotten first.
        """
        for name in reversed(hashes):
            self._used.pop(name, None)
            self._used[name] = None
        while len(self._used) > self._max_hashes:
            del self._used[next(iter(self._used))]

    def num_held(self, hashes: Sequence[bytes]) -> int:
        """Return how many of the first blocks are known, up to the first unknown block."""
        return next((index for index, name in enumerate(hashes) if name not in self._used), len(hashes))

    def forget(self) -> None:
        """Forget all hashes, since the dense actor and its cache are lost."""
        self._used.clear()
