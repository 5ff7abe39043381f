"""The pool of key-value cache blocks: who holds which, and how many are promised.

A request opens a `BlockTable` on what the cache already holds of it, with a promise of blocks for
the rest; it takes blocks from the promise as it advances, lets go of those that have left the
attention window, and closes the table when it ends. The pool alone changes block state. It knows
block numbers and content keys only: not the memory behind them, not scheduling policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidemill.runtime.kvcache.block_span import BlockSpan
from tidemill.runtime.kvcache.block_store import BlockCopy, BlockStore
from tidemill.runtime.kvcache.block_table import BlockTable
from tidemill.runtime.kvcache.host_tier import NO_HOST, HostCounters, HostRoom
from tidemill.runtime.kvcache.prefix import NOTHING, Prefix, find_prefix
from tidemill.runtime.kvcache.retention import KvCacheRetention


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

    def count_opened(self, table: BlockTable, prefix: Prefix) -> None:
        """Count a table that was just opened on a prefix."""
        self.alloc_total += table.num_held
        self.alloc_new += prefix.partial_block is not None
        self.reused += table.num_held
        self.missed += prefix.num_missed


class BlockPool:
    """A fixed number of blocks for a changing number of tables. `clock` gives seconds.

    Promised blocks are still free, but no other table can be opened on them, so a table that was
    opened can always grow to its promise. A block with several holders counts once, but for each
    with an attention `window`: any of them may let go of it and take another.
    """

    def __init__(
        self,
        num_blocks: int,
        tokens_per_block: int,
        clock: Callable[[], float] = time.monotonic,
        window: int | None = None,
        host: HostRoom = NO_HOST,
    ) -> None:
        self.num_blocks, self.tokens_per_block = num_blocks, tokens_per_block
        self.span = BlockSpan(tokens_per_block, window)
        self.counters = CacheCounters()
        self._store = BlockStore(num_blocks, self.span, clock, host)
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
        free = self._store.num_free - self._num_promised
        return free if self.span.window is None else free - self._store.num_extra_holds

    @property
    def host_counters(self) -> HostCounters:
        return self._store.host_counters

    def find(self, keys: Sequence[bytes], tokens: Sequence[int], is_partial: bool = True) -> Prefix:
        """Find what the cache holds of a sequence but for its last token; see `find_prefix`."""
        return find_prefix(self._store.index, self.span, keys, tokens, is_partial)

    def num_needed(self, max_tokens: int, prefix: Prefix = NOTHING, step_tokens: int = 1) -> int:
        """Count the available blocks that opening a table would use up."""
        most = self.span.most_blocks(max_tokens, prefix.num_skipped, step_tokens)
        if self.span.window is not None:
            return most
        return most - sum(map(self._store.is_held, prefix.blocks))

    def num_sole(self, table: BlockTable) -> int:
        """Count the available blocks that closing the table would give."""
        if self.span.window is not None:
            return table.num_held + table.num_promised
        return sum(map(self._store.is_sole, table.blocks)) + table.num_promised

    def open(
        self, max_tokens: int, prefix: Prefix = NOTHING, step_tokens: int = 1
    ) -> BlockTable | None:
        """Promise blocks for positions [0, max_tokens) after `prefix`; None when there are too few.

        `prefix` must have been found since the pool last changed. A step adds `step_tokens` at
        most, until `slide` says otherwise.
        """
        if self.num_needed(max_tokens, prefix, step_tokens) > self.num_available:
            return None
        table = BlockTable(prefix, step_tokens)
        table.hold_prefix(self._store, prefix)
        most = self.span.most_blocks(max_tokens, prefix.num_skipped, step_tokens)
        table.num_promised = most - table.num_held
        self._num_promised += table.num_promised
        self._tables[id(table)] = table
        self.counters.count_opened(table, prefix)
        return table

    def promise(self, table: BlockTable, num_tokens: int) -> bool:
        """Raise a table's promise to positions [0, num_tokens); false when there are too few."""
        most = self.span.most_blocks(num_tokens, table.num_dropped, table.step_tokens)
        num_more = most - table.num_held - table.num_promised
        if num_more > max(0, self.num_available):
            return False
        if num_more > 0:
            table.num_promised += num_more
            self._num_promised += num_more
        return True

    def grow(self, table: BlockTable, num_tokens: int) -> None:
        """Take blocks from the table's promise until it holds positions [0, num_tokens)."""
        num_missing = self.span.blocks_for(num_tokens) - len(table.blocks)
        assert num_missing <= table.num_promised, "a sequence outgrew its promise"
        for _ in range(num_missing):
            table.blocks.append(self._store.take())
            table.num_promised -= 1
            self._num_promised -= 1
            self.counters.alloc_total += 1
            self.counters.alloc_new += 1

    def slide(self, table: BlockTable, position: int, max_tokens: int, step_tokens: int) -> None:
        """Let go of blocks that no position from `position` on sees; take others in their place.

        What the table holds and is promised never grows by it, and shrinks to what `max_tokens`
        positions need in steps of `step_tokens`.
        """
        first = self.span.first_needed(position)
        num_had = table.num_held + table.num_promised
        if first > table.num_dropped:
            table.drop(self._store, first)
        most = self.span.most_blocks(max_tokens, first, step_tokens)
        num_promised = min(num_had, most) - table.num_held
        self._num_promised += num_promised - table.num_promised
        table.num_promised, table.step_tokens = num_promised, step_tokens

    def publish(
        self, table: BlockTable, index: int, keys: Sequence[bytes], tokens: Sequence[int]
    ) -> None:
        """Let block `index` of a table be found, all of whose positions are computed."""
        table.publish(self._store, index, keys, tokens)

    def retain(self, table: BlockTable, retention: KvCacheRetention, num_prompt: int) -> None:
        """Note how long the owner of a table wants its blocks kept."""
        table.retain(self._store, retention, num_prompt)

    def close(self, table: BlockTable) -> None:
        """Give back the table's blocks and the rest of its promise."""
        del self._tables[id(table)]
        self._num_promised -= table.num_promised
        table.release(self._store)

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Hand over the copies to be made, in order, before the next step writes anything."""
        return self._store.take_copies()

    def check(self) -> None:
        """Recompute every invariant: holders, free blocks, promises, what can be found."""
        holders = [0] * self.num_blocks
        for table in self._tables.values():
            table.check()
            for block in table.held:
                holders[block] += 1
        self._store.check(holders)
        promised = sum(table.num_promised for table in self._tables.values())
        assert promised == self._num_promised <= self.num_free, (promised, self.num_free)
        assert self.num_available >= 0, "more is promised than there is"
