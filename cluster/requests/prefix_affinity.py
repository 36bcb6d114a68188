"""Which prefixes a dense actor holds, as an ingress believes. Pure.

It is a guess from what was submitted there: the actor may have dropped a prefix, or another ingress brought one. A wrong
guess costs time, never a token, since the actor looks for itself.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_BLOCKS = 256
"""Blocks of one sequence that are looked at: what agrees so far is worth the way in any case."""
_MAX_HASHES = 16_384


class PrefixIndex:
    """The blocks of one dense actor that were used last, by name (`actors.protocol.prefix_hash`)."""

    def __init__(self, max_hashes: int = _MAX_HASHES) -> None:
        self._max_hashes = max_hashes
        self._used: dict[bytes, None] = {}
        """Ordered: used longest ago first."""

    def note(self, hashes: Sequence[bytes]) -> None:
        """A sequence whose first blocks have these names was submitted. Of a prefix the end is forgotten first."""
        for name in reversed(hashes):
            self._used.pop(name, None)
            self._used[name] = None
        while len(self._used) > self._max_hashes:
            del self._used[next(iter(self._used))]

    def num_held(self, hashes: Sequence[bytes]) -> int:
        """How many of the first blocks are there, without a gap."""
        return next((index for index, name in enumerate(hashes) if name not in self._used), len(hashes))

    def forget(self) -> None:
        """The dense actor was lost, and its cache with it."""
        self._used.clear()
