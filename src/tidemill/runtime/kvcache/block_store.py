"""The blocks themselves: empty, cached but free to be overwritten, or held; and what they contain.

In come requests to take, hold, release and publish single blocks; out come block numbers. A block
that nobody holds keeps its content, and can be found by it, until it is overwritten. Knows nothing
of tables or promises: `BlockPool` stands in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidemill.runtime.kvcache.eviction_order import EvictionOrder
from tidemill.runtime.kvcache.retention import DEFAULT_RETENTION, Retention
from tidemill.runtime.kvcache.reuse_index import ReuseIndex


@dataclass(frozen=True)
class Prefix:
    """What the cache holds of a sequence: whole blocks, then the first tokens of one more.

    `num_missed` full blocks of the sequence were looked for and not found.
    """

    blocks: tuple[int, ...] = ()
    partial_block: int | None = None
    num_partial_tokens: int = 0
    num_missed: int = 0


NOTHING = Prefix()


class BlockStore:
    """A fixed number of blocks and their content. `clock` gives seconds."""

    def __init__(self, num_blocks: int, tokens_per_block: int, clock: Callable[[], float]) -> None:
        assert num_blocks > 0 and tokens_per_block > 0, (num_blocks, tokens_per_block)
        self.num_blocks = num_blocks
        self.tokens_per_block = tokens_per_block
        self.num_evicted = 0
        # Last in, first out: a block just released is the likeliest to be in the CPU's cache.
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._evictable = EvictionOrder(clock)
        self._index = ReuseIndex()
        self._num_holders = [0] * num_blocks
        self._block_to_wish: dict[int, Retention] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._empty) + len(self._evictable)

    @property
    def num_cached(self) -> int:
        """Blocks whose content can be found."""
        return len(self._index)

    def is_held(self, block: int) -> bool:
        """Say whether somebody holds a block."""
        return self._num_holders[block] > 0

    def is_sole(self, block: int) -> bool:
        """Say whether a block has one holder."""
        return self._num_holders[block] == 1

    def find(self, keys: Sequence[bytes], tokens: Sequence[int], is_partial: bool) -> Prefix:
        """Find what the cache holds of a sequence but for its last token, which must be computed.

        `keys` begins with the root key and names the full blocks of `tokens`; `is_partial` looks
        for the beginning of one more block, too.
        """
        unit, limit = self.tokens_per_block, len(tokens) - 1
        blocks: list[int] = []
        for key in keys[1 : limit // unit + 1]:
            block = self._index.find(key)
            if block is None:
                break
            blocks.append(block)
        num_missed = limit // unit - len(blocks)
        if is_partial:
            start = len(blocks) * unit
            rest = tokens[start : min(start + unit, limit)]
            partial = self._index.find_partial(keys[len(blocks)], rest)
            if partial is not None:
                return Prefix(tuple(blocks), *partial, num_missed=max(0, num_missed - 1))
        return Prefix(tuple(blocks), num_missed=num_missed)

    def take(self) -> int:
        """Hold a block to be overwritten: an empty one, or else the next in order of eviction."""
        if self._empty:
            block = self._empty.pop()
        else:
            block = self._evictable.pop()
            self._index.remove(block)
            self._block_to_wish.pop(block, None)
            self.num_evicted += 1
        self._num_holders[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Hold a block for its content, as one of several perhaps."""
        if not self._num_holders[block]:
            self._evictable.remove(block)
        self._num_holders[block] += 1

    def release(self, block: int) -> None:
        """Hold a block no more; without holders it is cached if it can be found, else empty."""
        self._num_holders[block] -= 1
        if self._num_holders[block]:
            return
        if block in self._index:
            self._evictable.add(block, self._block_to_wish.get(block, DEFAULT_RETENTION))
        else:
            self._block_to_wish.pop(block, None)
            self._empty.append(block)

    def publish(self, block: int, parent: bytes, key: bytes, tokens: Sequence[int]) -> None:
        """Let a block be found, all of whose positions are computed; the first of equals stays."""
        self._index.add(block, parent, key, tokens)

    def retain(self, block: int, wish: Retention) -> None:
        """Note how long a block is to be kept when it is released."""
        self._block_to_wish[block] = wish

    def check(self, holders: Sequence[int]) -> None:
        """Recompute every invariant; `holders` counts who holds each block."""
        assert list(holders) == self._num_holders, "block lost or shared"
        free = [block for block in range(self.num_blocks) if not holders[block]]
        cached = [block for block in free if block in self._index]
        empty = [block for block in free if block not in self._index]
        assert sorted(self._empty) == empty, "empty block lost or found"
        assert all(b in self._evictable for b in cached) and len(cached) == len(self._evictable)
        assert self._block_to_wish.keys() <= set(range(self.num_blocks)) - set(empty)
        self._index.check()
