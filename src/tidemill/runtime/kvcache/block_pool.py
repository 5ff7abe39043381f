"""The pool of key-value cache blocks: who holds which, and how many are promised.

A request opens a `BlockTable` on what the cache already holds of it, with a promise of blocks for
the rest; it takes blocks from the promise as it advances, and closes the table when it ends. The
pool alone changes block state. It knows block numbers and content keys only: not the memory behind
them, not scheduling policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidemill.runtime.kvcache.block_store import NOTHING, BlockStore, Prefix
from tidemill.runtime.kvcache.retention import KvCacheRetention

BlockCopy = tuple[int, int]
"""Source block and destination block."""


class BlockTable:
    """The blocks of one sequence in position order, and how many it may still take.

    Only `BlockPool` changes it; everyone else reads `blocks`, which stays the same list object
    while the table is open. `num_cached_tokens` positions were found in the cache when it opened.
    """

    __slots__ = ("blocks", "num_cached_tokens", "num_promised")

    def __init__(self, num_promised: int = 0) -> None:
        self.blocks: list[int] = []
        self.num_promised = num_promised
        self.num_cached_tokens = 0


@dataclass
class CacheCounters:
    """What tables were given since the start. Units: blocks.

    `alloc_total` = `alloc_new` + whole blocks reused; `reused` counts copied ones, too; `missed`
    are full blocks of known tokens that were looked for and not found.
    """

    alloc_total: int = 0
    alloc_new: int = 0
    reused: int = 0
    missed: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the blocks looked for that were reused."""
        asked = self.reused + self.missed
        return self.reused / asked if asked else 0.0


class BlockPool:
    """A fixed number of blocks for a changing number of tables. `clock` gives seconds.

    Promised blocks are still free, but no other table can be opened on them, so a table that was
    opened can always grow to its promise.
    """

    def __init__(
        self, num_blocks: int, tokens_per_block: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_blocks = num_blocks
        self.tokens_per_block = tokens_per_block
        self.counters = CacheCounters()
        self._store = BlockStore(num_blocks, tokens_per_block, clock)
        self._copies: list[BlockCopy] = []
        self._num_promised = 0
        self._tables: dict[int, BlockTable] = {}

    @property
    def num_free(self) -> int:
        """Blocks that no table holds, cached and promised ones included."""
        return self._store.num_free

    @property
    def num_used(self) -> int:
        """Blocks that some table holds."""
        return self.num_blocks - self._store.num_free

    @property
    def num_available(self) -> int:
        """Blocks that can still be promised."""
        return self._store.num_free - self._num_promised

    def blocks_for(self, num_tokens: int) -> int:
        """Count the blocks that positions [0, num_tokens) need."""
        return -(-num_tokens // self.tokens_per_block)

    def find(self, keys: Sequence[bytes], tokens: Sequence[int], is_partial: bool = True) -> Prefix:
        """Find what the cache holds of a sequence but for its last token; see `BlockStore.find`."""
        return self._store.find(keys, tokens, is_partial)

    def num_needed(self, max_tokens: int, prefix: Prefix = NOTHING) -> int:
        """Count the available blocks that opening a table would use up."""
        num_revived = sum(not self._store.is_held(block) for block in prefix.blocks)
        return self.blocks_for(max_tokens) - len(prefix.blocks) + num_revived

    def num_sole(self, table: BlockTable) -> int:
        """Count the available blocks that closing the table would give."""
        return sum(map(self._store.is_sole, table.blocks)) + table.num_promised

    def open(self, max_tokens: int, prefix: Prefix = NOTHING) -> BlockTable | None:
        """Promise blocks for positions [0, max_tokens) after `prefix`; None when there are too few.

        `prefix` must have been found since the pool last changed.
        """
        if self.num_needed(max_tokens, prefix) > self.num_available:
            return None
        table = BlockTable(self.blocks_for(max_tokens) - len(prefix.blocks))
        for block in prefix.blocks:
            self._store.hold(block)
        table.blocks.extend(prefix.blocks)
        table.num_cached_tokens = len(prefix.blocks) * self.tokens_per_block
        self._num_promised += table.num_promised
        self._tables[id(table)] = table
        if prefix.partial_block is not None:
            self._take_copy(table, prefix.partial_block)
            table.num_cached_tokens += prefix.num_partial_tokens
        self.counters.alloc_total += len(prefix.blocks)
        self.counters.reused += len(prefix.blocks) + (prefix.partial_block is not None)
        self.counters.missed += prefix.num_missed
        return table

    def promise(self, table: BlockTable, num_tokens: int) -> bool:
        """Raise a table's promise to positions [0, num_tokens); false when there are too few."""
        num_more = self.blocks_for(num_tokens) - len(table.blocks) - table.num_promised
        if num_more > max(0, self.num_available):
            return False
        if num_more > 0:
            table.num_promised += num_more
            self._num_promised += num_more
        return True

    def grow(self, table: BlockTable, num_tokens: int) -> None:
        """Take blocks from the table's promise until it holds positions [0, num_tokens)."""
        num_missing = self.blocks_for(num_tokens) - len(table.blocks)
        assert num_missing <= table.num_promised, "a sequence outgrew its promise"
        for _ in range(num_missing):
            self._take(table)

    def publish(
        self, table: BlockTable, index: int, keys: Sequence[bytes], tokens: Sequence[int]
    ) -> None:
        """Let block `index` of a table be found, all of whose positions are computed.

        `keys` and `tokens` are those of the sequence.
        """
        unit = self.tokens_per_block
        content = tokens[index * unit : (index + 1) * unit]
        self._store.publish(table.blocks[index], keys[index], keys[index + 1], content)

    def retain(self, table: BlockTable, retention: KvCacheRetention, num_prompt: int) -> None:
        """Note how long the owner of a table wants its blocks kept."""
        unit = self.tokens_per_block
        for start, block in enumerate(table.blocks):
            wish = retention.of_block(start * unit, (start + 1) * unit, num_prompt)
            self._store.retain(block, wish)

    def close(self, table: BlockTable) -> None:
        """Give back the table's blocks and the rest of its promise."""
        del self._tables[id(table)]
        # The end of a sequence first, so that it is overwritten before what others may share.
        for block in reversed(table.blocks):
            self._store.release(block)
        self._num_promised -= table.num_promised
        # A new list, not a cleared one: a plan in flight may still show the old one.
        table.blocks = []
        table.num_promised = 0

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Hand over the copies to be made, in order, before the next step writes anything."""
        copies, self._copies = self._copies, []
        return tuple(copies)

    def check(self) -> None:
        """Recompute every invariant: holders, free blocks, promises, what can be found."""
        holders = [0] * self.num_blocks
        for table in self._tables.values():
            assert len(set(table.blocks)) == len(table.blocks), "block lost or shared in a table"
            assert table.num_promised >= 0
            for block in table.blocks:
                holders[block] += 1
        self._store.check(holders)
        promised = sum(table.num_promised for table in self._tables.values())
        assert promised == self._num_promised <= self.num_free, (promised, self.num_free)

    def _take(self, table: BlockTable) -> int:
        block = self._store.take()
        table.blocks.append(block)
        table.num_promised -= 1
        self._num_promised -= 1
        self.counters.alloc_total += 1
        self.counters.alloc_new += 1
        return block

    def _take_copy(self, table: BlockTable, source: int) -> None:
        block = self._take(table)
        # The source itself may have been the next to be overwritten: it holds the content already.
        if block != source:
            self._copies.append((source, block))
