"""Accounting of KV blocks. Pure: block numbers, no tensors.

position in sequence    0 .. 15 | 16 .. 31 | 32 ..        block_size 16
sequence.blocks         [   7   ,    2     ,   9 ]
row in the cache        7 * 16 + 0 ...
"""

from __future__ import annotations

from actors.dense.sequence import Sequence


class BlockPool:
    """Hands out blocks 0 .. num_blocks - 1 and takes them back; a block has one owner."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks that the sequence lacks to hold its first num_tokens tokens."""
        return max(0, -(-num_tokens // self.block_size) - len(sequence.blocks))

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give the sequence room for num_tokens tokens; False, and nothing taken, where too few blocks are free."""
        missing = self.num_missing(sequence, num_tokens)
        if missing > len(self._free):
            return False
        sequence.blocks.extend(self._free.pop() for _ in range(missing))
        return True

    def trim(self, sequence: Sequence, num_tokens: int) -> None:
        """Take back what the sequence holds beyond its first num_tokens tokens."""
        num_blocks = -(-num_tokens // self.block_size)
        self._free.extend(reversed(sequence.blocks[num_blocks:]))
        del sequence.blocks[num_blocks:]

    def release(self, sequence: Sequence) -> None:
        """Take back all blocks of the sequence."""
        self._free.extend(reversed(sequence.blocks))
        sequence.blocks.clear()
