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

from tidemill.runtime.kvcache.block_span import NO_BLOCK, BlockSpan
from tidemill.runtime.kvcache.block_store import NOTHING, BlockStore, Prefix
from tidemill.runtime.kvcache.retention import KvCacheRetention

BlockCopy = tuple[int, int]
"""Source block and destination block."""


class BlockTable:
    """The blocks of one sequence in position order, and how many it may still take.

    Only `BlockPool` changes it; everyone else reads `blocks`, which grows in place and is a new
    list object whenever earlier entries change. The first `num_dropped` have left the attention
    window and are NO_BLOCK; `num_skipped` of them were when it opened, with `num_cached_tokens`
    positions found in the cache. One step adds `step_tokens` at most.
    """

    __slots__ = (
        "blocks",
        "num_cached_tokens",
        "num_dropped",
        "num_promised",
        "num_skipped",
        "step_tokens",
    )

    def __init__(self, prefix: Prefix = NOTHING, step_tokens: int = 1) -> None:
        self.blocks: list[int] = list(prefix.blocks)
        self.num_dropped = self.num_skipped = prefix.num_skipped
        self.num_promised = 0
        self.num_cached_tokens = 0
        self.step_tokens = step_tokens

    @property
    def num_held(self) -> int:
        return len(self.blocks) - self.num_dropped

    @property
    def held(self) -> list[int]:
        """The blocks that are not dropped."""
        return self.blocks[self.num_dropped :]


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
    opened can always grow to its promise. A block with several holders counts once; with an
    attention `window` it counts for each, as any of them may let go of it and take another.
    """

    def __init__(
        self,
        num_blocks: int,
        tokens_per_block: int,
        clock: Callable[[], float] = time.monotonic,
        window: int | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.tokens_per_block = tokens_per_block
        self.span = BlockSpan(tokens_per_block, window)
        self.counters = CacheCounters()
        self._store = BlockStore(num_blocks, self.span, clock)
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
        free = self._store.num_free - self._num_promised
        return free if self.span.window is None else free - self._store.num_extra_holds

    def find(self, keys: Sequence[bytes], tokens: Sequence[int], is_partial: bool = True) -> Prefix:
        """Find what the cache holds of a sequence but for its last token; see `BlockStore.find`."""
        return self._store.find(keys, tokens, is_partial)

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
        for block in table.held:
            self._store.hold(block)
        most = self.span.most_blocks(max_tokens, prefix.num_skipped, step_tokens)
        table.num_promised = most - table.num_held
        table.num_cached_tokens = len(prefix.blocks) * self.tokens_per_block
        self._num_promised += table.num_promised
        self._tables[id(table)] = table
        self.counters.alloc_total += table.num_held
        self.counters.reused += table.num_held + (prefix.partial_block is not None)
        self.counters.missed += prefix.num_missed
        if prefix.partial_block is not None:
            self._take_copy(table, prefix.partial_block)
            table.num_cached_tokens += prefix.num_partial_tokens
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
            self._take(table)

    def slide(self, table: BlockTable, position: int, max_tokens: int, step_tokens: int) -> None:
        """Let go of blocks that no position from `position` on sees; take others in their place.

        What the table holds and is promised never grows by it, and shrinks to what `max_tokens`
        positions need in steps of `step_tokens`.
        """
        first = self.span.first_needed(position)
        num_had = table.num_held + table.num_promised
        if first > table.num_dropped:
            for block in table.blocks[table.num_dropped : first]:
                self._store.release(block)
            # A new list: whoever knows the old one notices, and a plan in flight still shows it.
            table.blocks = [NO_BLOCK] * first + table.blocks[first:]
            table.num_dropped = first
        most = self.span.most_blocks(max_tokens, first, step_tokens)
        num_promised = min(num_had, most) - table.num_held
        self._num_promised += num_promised - table.num_promised
        table.num_promised, table.step_tokens = num_promised, step_tokens

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
        for start, block in enumerate(table.held, table.num_dropped):
            wish = retention.of_block(start * unit, (start + 1) * unit, num_prompt)
            self._store.retain(block, wish)

    def close(self, table: BlockTable) -> None:
        """Give back the table's blocks and the rest of its promise."""
        del self._tables[id(table)]
        # The end of a sequence first, so that it is overwritten before what others may share.
        for block in reversed(table.held):
            self._store.release(block)
        self._num_promised -= table.num_promised
        # A new list, not a cleared one: a plan in flight may still show the old one.
        table.blocks = []
        table.num_promised = table.num_dropped = 0

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Hand over the copies to be made, in order, before the next step writes anything."""
        copies, self._copies = self._copies, []
        return tuple(copies)

    def check(self) -> None:
        """Recompute every invariant: holders, free blocks, promises, what can be found."""
        holders = [0] * self.num_blocks
        for table in self._tables.values():
            assert len(set(table.held)) == table.num_held, "block lost or shared in a table"
            assert table.blocks[: table.num_dropped] == [NO_BLOCK] * table.num_dropped
            assert table.num_promised >= 0
            for block in table.held:
                holders[block] += 1
        self._store.check(holders)
        promised = sum(table.num_promised for table in self._tables.values())
        assert promised == self._num_promised <= self.num_free, (promised, self.num_free)
        assert self.num_available >= 0, "more is promised than there is"

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
