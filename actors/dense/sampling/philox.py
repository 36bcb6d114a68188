"""One uniform number for each (request seed, token position), the same on every machine and in every batch.

The generator is Philox4x32 with ten rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3", section 4). It is counter-based, so a resumed sequence draws the same numbers as without the interruption.
"""

from __future__ import annotations

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, for a seed in [0, 2**64) and a position >= 0."""
    words = philox((position & _MASK, position >> 32, 0, 0), (seed & _MASK, seed >> 32 & _MASK))
    return ((words[0] << 32 | words[1]) >> 11) * 2.0**-53


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four 32-bit words for a 128-bit counter and a 64-bit key, each given as 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            product1 >> 32 ^ c1 ^ k0,
            product1 & _MASK,
            product0 >> 32 ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return c0, c1, c2, c3
