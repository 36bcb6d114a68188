"""Accounting of KV blocks, which sequences with the same prefix share. Pure: block numbers and hashes, no
tensors.

position in sequence    0 .. 15 | 16 .. 31 | 32 ..        block_size 16
sequence.blocks         [   7   ,    2     ,   9 ]
row in the cache        7 * 16 + 0 ...

A block is in one of three states:

    unused      no sequence holds it, and its content means nothing
    held        one or more sequences hold it; it is written to only while it has no name
    idle        no sequence holds it, but it has a name: the next sequence with that prefix finds it

The name of a block is the hash of everything that its content depends on (`actors.protocol.prefix_hash`). A
block gets its name when it is full and computed, and is never written to afterwards. If an older block has
the same name, the sequence holds the older block instead of its own.

Named blocks therefore form a tree, and a sequence that holds a block also holds the block's parents. A
sequence gives back its last block first. So the block that has been idle longest has no children, and it is
the one that is taken when no block is unused.
"""

from __future__ import annotations

from actors.dense.scheduling.sequence import Sequence


class BlockPool:
    """Hands out blocks 0 .. num_blocks - 1 and takes them back."""

    def __init__(self, num_blocks: int, block_size: int, shares_prefixes: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.shares_prefixes = shares_prefixes
        self._unused = list(range(num_blocks - 1, -1, -1))
        self._num_holders = [0] * num_blocks
        self._names: list[bytes | None] = [None] * num_blocks
        self._by_name: dict[bytes, int] = {}
        self._idle: dict[int, None] = {}
        """The idle blocks as an ordered set; the one that has been idle longest comes first."""

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out: unused and idle ones."""
        return len(self._unused) + len(self._idle)

    def num_missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Number of further blocks that the sequence needs to hold its first `num_tokens` tokens."""
        return max(0, -(-num_tokens // self.block_size) - len(sequence.blocks))

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give the sequence room for `num_tokens` tokens. Return False and take nothing if too few blocks are
        free."""
        if num_tokens <= len(sequence.blocks) * self.block_size:
            return True
        missing = self.num_missing(sequence, num_tokens)
        if missing > self.num_free:
            return False
        sequence.blocks.extend(self._take() for _ in range(missing))
        return True

    def find(self, sequence: Sequence) -> list[int]:
        """The blocks of the longest prefix of the sequence that the pool has; all are full. The sequence's
        last token is never among them, because it must be computed to get the next one."""
        if not self.shares_prefixes:
            return []
        found = []
        for name in sequence.block_hashes((sequence.num_tokens - 1) // self.block_size, self.block_size):
            block = self._by_name.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def num_free_beside(self, blocks: list[int]) -> int:
        """Number of blocks that would still be free if `blocks` were held."""
        return self.num_free - sum(block in self._idle for block in blocks)

    def share(self, sequence: Sequence, blocks: list[int]) -> None:
        """Give a sequence that has no blocks the ones that `find` returned; their tokens count as
        computed."""
        assert not sequence.blocks
        for block in blocks:
            self._hold(block)
        sequence.blocks.extend(blocks)
        sequence.num_named = len(blocks)
        sequence.num_computed = len(blocks) * self.block_size

    def note_computed(self, sequence: Sequence) -> None:
        """Name the blocks that the sequence has filled. If an older block has the same content, hold the
        older block instead."""
        if not self.shares_prefixes:
            return
        num_full = sequence.num_computed // self.block_size
        if num_full <= sequence.num_named:
            return
        names = sequence.block_hashes(num_full, self.block_size)
        for index in range(sequence.num_named, num_full):
            own, name = sequence.blocks[index], names[index]
            present = self._by_name.setdefault(name, own)
            if present == own:
                self._names[own] = name
            else:
                self._hold(present)
                self._leave(own)
                sequence.blocks[index] = present
        sequence.num_named = num_full

    def trim(self, sequence: Sequence, num_tokens: int) -> None:
        """Take back the blocks beyond the sequence's first `num_tokens` tokens; none of them has a name."""
        num_blocks = -(-num_tokens // self.block_size)
        assert num_blocks >= sequence.num_named
        for block in reversed(sequence.blocks[num_blocks:]):
            self._leave(block)
        del sequence.blocks[num_blocks:]

    def release(self, sequence: Sequence) -> None:
        """Take back all blocks of the sequence. Blocks with a name can still be found until their memory is
        needed."""
        for block in reversed(sequence.blocks):
            self._leave(block)
        del sequence.blocks[:]
        sequence.num_named = 0

    def _take(self) -> int:
        if self._unused:
            block = self._unused.pop()
        else:
            block = next(iter(self._idle))
            del self._idle[block]
            name = self._names[block]
            assert name is not None
            del self._by_name[name]
            self._names[block] = None
        self._num_holders[block] = 1
        return block

    def _hold(self, block: int) -> None:
        self._idle.pop(block, None)
        self._num_holders[block] += 1

    def _leave(self, block: int) -> None:
        self._num_holders[block] -= 1
        if self._num_holders[block]:
            return
        if self._names[block] is None:
            self._unused.append(block)
        else:
            self._idle[block] = None
