"""The pool of key-value cache blocks: who holds which block, and how many are promised.

A request opens a `BlockTable` with a promise of blocks for its whole life, takes blocks from the
promise as it advances, and closes the table when it ends. The pool alone changes block state. It
knows block numbers only: not the memory behind them, not tokens, not scheduling policy.
"""

from __future__ import annotations


class BlockTable:
    """The blocks of one sequence in position order, and how many it may still take.

    Only `BlockPool` changes it; everyone else reads `blocks`, which stays the same list object
    for the table's whole life.
    """

    __slots__ = ("blocks", "num_promised")

    def __init__(self, num_promised: int) -> None:
        self.blocks: list[int] = []
        self.num_promised = num_promised


class BlockPool:
    """A fixed number of blocks, each free or held by exactly one table.

    Promised blocks are still free, but no other table can be opened on them, so a table that was
    opened can always grow to its promise.
    """

    def __init__(self, num_blocks: int, tokens_per_block: int) -> None:
        assert num_blocks > 0 and tokens_per_block > 0, (num_blocks, tokens_per_block)
        self.num_blocks = num_blocks
        self.tokens_per_block = tokens_per_block
        # Last in, first out: a block just released is the likeliest to be in the CPU's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_promised = 0
        self._tables: dict[int, BlockTable] = {}

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing, promised ones included."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that some table holds."""
        return self.num_blocks - len(self._free)

    @property
    def num_available(self) -> int:
        """Blocks that can still be promised."""
        return len(self._free) - self._num_promised

    def blocks_for(self, num_tokens: int) -> int:
        """Count the blocks that positions [0, num_tokens) need."""
        return -(-num_tokens // self.tokens_per_block)

    def open(self, max_tokens: int) -> BlockTable | None:
        """Promise blocks for positions [0, max_tokens); None when the pool has too few."""
        num_promised = self.blocks_for(max_tokens)
        if num_promised > self.num_available:
            return None
        table = BlockTable(num_promised)
        self._num_promised += num_promised
        self._tables[id(table)] = table
        return table

    def grow(self, table: BlockTable, num_tokens: int) -> None:
        """Take blocks from the table's promise until it holds positions [0, num_tokens)."""
        num_missing = self.blocks_for(num_tokens) - len(table.blocks)
        if num_missing <= 0:
            return
        assert num_missing <= table.num_promised, "a sequence outgrew its promise"
        for _ in range(num_missing):
            table.blocks.append(self._free.pop())
        table.num_promised -= num_missing
        self._num_promised -= num_missing

    def close(self, table: BlockTable) -> None:
        """Give back the table's blocks and the rest of its promise."""
        del self._tables[id(table)]
        self._free.extend(reversed(table.blocks))
        self._num_promised -= table.num_promised
        # A new list, not a cleared one: a plan in flight may still show the old one.
        table.blocks = []
        table.num_promised = 0

    def check(self) -> None:
        """Recompute every invariant: each block is free or in one table, promises can be kept."""
        held = [block for table in self._tables.values() for block in table.blocks]
        assert sorted(held + self._free) == list(range(self.num_blocks)), "block lost or shared"
        promised = sum(table.num_promised for table in self._tables.values())
        assert promised == self._num_promised, (promised, self._num_promised)
        assert 0 <= self._num_promised <= len(self._free), (self._num_promised, len(self._free))
        assert all(table.num_promised >= 0 for table in self._tables.values())
