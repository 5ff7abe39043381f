"""The blocks themselves: empty, cached but free to be overwritten, or held; and what they contain.

In come requests to take, hold, release and publish single blocks; out come block numbers. A block
that nobody holds keeps its content, and can be found by it, until it is overwritten. Knows nothing
of tables or promises: `BlockPool` stands in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tidemill.runtime.kvcache.block_span import NO_BLOCK, BlockSpan
from tidemill.runtime.kvcache.eviction_order import EvictionOrder
from tidemill.runtime.kvcache.retention import DEFAULT_RETENTION, Retention
from tidemill.runtime.kvcache.reuse_index import ReuseIndex


@dataclass(frozen=True)
class Prefix:
    """What the cache holds of a sequence: whole blocks, then the first tokens of one more.

    The first `num_skipped` blocks have left the attention window: they are not needed, and
    NO_BLOCK stands for them. `num_missed` full blocks were looked for and not found.
    """

    blocks: tuple[int, ...] = ()
    partial_block: int | None = None
    num_partial_tokens: int = 0
    num_missed: int = 0
    num_skipped: int = 0

    def num_tokens(self, tokens_per_block: int) -> int:
        """Count the positions that need not be computed."""
        return len(self.blocks) * tokens_per_block + self.num_partial_tokens


NOTHING = Prefix()


class BlockStore:
    """A fixed number of blocks and their content. `clock` gives seconds.

    `num_extra_holds` counts, for each block, the holders beyond the first.
    """

    def __init__(self, num_blocks: int, span: BlockSpan, clock: Callable[[], float]) -> None:
        assert num_blocks > 0 and span.tokens_per_block > 0, (num_blocks, span)
        self.num_blocks = num_blocks
        self.num_evicted = 0
        self.num_extra_holds = 0
        self._span = span
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
        unit, limit = self._span.tokens_per_block, len(tokens) - 1
        blocks = self._find_whole(keys[1 : limit // unit + 1])
        num_whole = len(blocks)
        num_missed = limit // unit - num_whole
        num_skipped = self._span.first_needed(num_whole * unit)
        blocks[:num_skipped] = [NO_BLOCK] * num_skipped
        partial = None
        if is_partial:
            rest = tokens[num_whole * unit : min((num_whole + 1) * unit, limit)]
            partial = self._index.find_partial(keys[num_whole], rest)
        if partial is None:
            return Prefix(tuple(blocks), num_missed=num_missed, num_skipped=num_skipped)
        return Prefix(tuple(blocks), *partial, max(0, num_missed - 1), num_skipped)

    def _find_whole(self, keys: Sequence[bytes]) -> list[int]:
        """Find the longest beginning of which all blocks are cached that its end still sees."""
        blocks: list[int] = []
        num_whole = num_in_row = 0
        for count, key in enumerate(keys, 1):
            block = self._index.find(key)
            if block is None and self._span.window is None:
                break
            blocks.append(NO_BLOCK if block is None else block)
            num_in_row = 0 if block is None else num_in_row + 1
            if num_in_row >= count - self._span.first_needed(count * self._span.tokens_per_block):
                num_whole = count
        return blocks[:num_whole]

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
        if self._num_holders[block]:
            self.num_extra_holds += 1
        else:
            self._evictable.remove(block)
        self._num_holders[block] += 1

    def release(self, block: int) -> None:
        """Hold a block no more; without holders it is cached if it can be found, else empty."""
        self._num_holders[block] -= 1
        if self._num_holders[block]:
            self.num_extra_holds -= 1
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
        assert sum(max(0, count - 1) for count in holders) == self.num_extra_holds
        free = [block for block in range(self.num_blocks) if not holders[block]]
        cached = [block for block in free if block in self._index]
        empty = [block for block in free if block not in self._index]
        assert sorted(self._empty) == empty, "empty block lost or found"
        assert all(b in self._evictable for b in cached) and len(cached) == len(self._evictable)
        assert self._block_to_wish.keys() <= set(range(self.num_blocks)) - set(empty)
        self._index.check()
