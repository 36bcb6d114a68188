"""Hashes of prefixes: one hash per full block, chained, so that equal hashes mean equal keys and values.

Pure.

    root(salt, factors)  ->  hash of block 0  ->  hash of block 1  ->  ...
                             tokens 0 .. 15       tokens 16 .. 31

The hash of a block covers all tokens up to its end, the LongRoPE factors (short or long) that rotated its
keys, and the client's salt. A block's keys and values depend on these and on nothing else. A dense actor
finds blocks by their hash, and an ingress remembers by it which dense actor computed them. Imports no torch.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from actors.protocol.messages import PrefixRule

_HASH_BYTES = 32
"""Long enough that nobody can make two prefixes with the same hash."""


def prefix_root(cache_salt: str, is_long: bool) -> bytes:
    """Return the root of the chains of all prefixes with this salt and with these LongRoPE factors."""
    return blake2b(
        cache_salt.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES, key=b"%d" % is_long
    ).digest()


def prompt_hashes(
    rule: PrefixRule, token_ids: Sequence[int], cache_salt: str, max_blocks: int
) -> list[bytes]:
    """Return the hashes of the first full blocks, at most `max_blocks`, of a submitted sequence."""
    is_long = rule.long_rope_threshold is not None and len(token_ids) > rule.long_rope_threshold
    first = token_ids[: max_blocks * rule.block_size]
    return extend_chain(prefix_root(cache_salt, is_long), first, rule.block_size)


def extend_chain(parent: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """Return the hashes of the full blocks of `token_ids`, which follow the block or root `parent`."""
    hashes = []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        content = array("q", token_ids[start : start + block_size]).tobytes()
        parent = blake2b(parent + content, digest_size=_HASH_BYTES).digest()
        hashes.append(parent)
    return hashes
