"""Names of prefixes: one hash per full block, chained, so that equal names mean equal keys and values. Pure.

    root(salt, list)  ->  hash of block 0  ->  hash of block 1  ->  ...
                          tokens 0 .. 15       tokens 16 .. 31

The name of a block covers all tokens up to its end, the LongRoPE list that its keys were rotated with, and the
client's salt: what a block's keys and values depend on, and nothing else. A dense actor finds blocks by it; an ingress
remembers by it which dense actor computed them. Imports no torch.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from actors.protocol.messages import PrefixRule

_HASH_BYTES = 32
"""So that nobody can make two prefixes of one name."""


def prefix_root(cache_salt: str, is_long: bool) -> bytes:
    """What the chains of all prefixes with this salt, rotated with this LongRoPE list, begin with."""
    return blake2b(
        cache_salt.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES, key=b"%d" % is_long
    ).digest()


def prompt_hashes(
    rule: PrefixRule, token_ids: Sequence[int], cache_salt: str, max_blocks: int
) -> list[bytes]:
    """Names of the first full blocks of a sequence that is submitted with these tokens, `max_blocks` at most."""
    is_long = rule.long_rope_threshold is not None and len(token_ids) > rule.long_rope_threshold
    first = token_ids[: max_blocks * rule.block_size]
    return extend_chain(prefix_root(cache_salt, is_long), first, rule.block_size)


def extend_chain(parent: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """Hashes of the full blocks of `token_ids`, which follow the block or root that `parent` names."""
    hashes = []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        content = array("q", token_ids[start : start + block_size]).tobytes()
        parent = blake2b(parent + content, digest_size=_HASH_BYTES).digest()
        hashes.append(parent)
    return hashes
