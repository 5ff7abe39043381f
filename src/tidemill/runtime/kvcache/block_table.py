"""The blocks of one sequence, in position order, and the ways in which a table comes to hold them.

In comes what the cache holds of a sequence; out goes the list that attention reads through. Only
`BlockPool` calls what changes a table: promises are its matter.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.runtime.kvcache.block_span import NO_BLOCK
from tidemill.runtime.kvcache.block_store import BlockStore
from tidemill.runtime.kvcache.prefix import NOTHING, Prefix
from tidemill.runtime.kvcache.retention import KvCacheRetention


class BlockTable:
    """Blocks held, and how many the sequence may still take.

    Everyone reads `blocks`, which grows in place and is a new list object whenever earlier entries
    change. The first `num_dropped` have left the attention window and are NO_BLOCK; `num_skipped`
    of them had when it opened, with `num_cached_tokens` positions found in the cache. One step adds
    `step_tokens` at most.
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
    def num_taken(self) -> int:
        """How many blocks it has held since it opened, those dropped since then too."""
        return len(self.blocks) - self.num_skipped

    @property
    def held(self) -> list[int]:
        """The blocks that are not dropped."""
        return self.blocks[self.num_dropped :]

    def hold_prefix(self, store: BlockStore, prefix: Prefix) -> None:
        """Hold the prefix that the table was made of, with copies of what must be copied."""
        found = [*self.held, *([] if prefix.partial_block is None else [prefix.partial_block])]
        in_host = store.claim(found)
        for block in self.held:
            if block not in in_host:
                store.hold(block)
        self.num_cached_tokens = prefix.num_tokens(store.tokens_per_block)
        # First of all that is taken: the block it copies may be the next to be overwritten.
        if prefix.partial_block is not None:
            self.blocks.append(store.take_copy(prefix.partial_block))
        for index in range(self.num_dropped, len(prefix.blocks)):
            slot = self.blocks[index]
            if slot in in_host:
                self.blocks[index] = store.bring_back(slot, in_host[slot])
        if prefix.partial_block in in_host:
            store.host.keep(prefix.partial_block, in_host[prefix.partial_block])

    def drop(self, store: BlockStore, first: int) -> None:
        """Let go of the blocks before index `first`."""
        for block in self.blocks[self.num_dropped : first]:
            store.release(block)
        # A new list: whoever knows the old one notices, and a plan in flight still shows it.
        self.blocks = [NO_BLOCK] * first + self.blocks[first:]
        self.num_dropped = first

    def publish(
        self, store: BlockStore, index: int, keys: Sequence[bytes], tokens: Sequence[int]
    ) -> None:
        """Let block `index` be found; `keys` and `tokens` are those of the sequence."""
        unit = store.tokens_per_block
        content = tokens[index * unit : (index + 1) * unit]
        store.publish(self.blocks[index], keys[index], keys[index + 1], content)

    def retain(self, store: BlockStore, retention: KvCacheRetention, num_prompt: int) -> None:
        """Note how long the owner wants its blocks kept."""
        unit = store.tokens_per_block
        for index, block in enumerate(self.held, self.num_dropped):
            wish = retention.of_block(index * unit, (index + 1) * unit, num_prompt)
            store.retain(block, wish)

    def release(self, store: BlockStore) -> None:
        """Let go of all blocks."""
        # The end of a sequence first, so that it is overwritten before what others may share.
        for block in reversed(self.held):
            store.release(block)
        # A new list, not a cleared one: a plan in flight may still show the old one.
        self.blocks = []
        self.num_promised = self.num_dropped = 0

    def check(self) -> None:
        """Recompute that entries are NO_BLOCK before the window and distinct in it."""
        assert len(set(self.held)) == self.num_held, "block lost or shared in a table"
        assert self.blocks[: self.num_dropped] == [NO_BLOCK] * self.num_dropped
        assert self.num_promised >= 0
