"""The blocks themselves: empty, cached but free to be overwritten, or held; and what they contain.

In come requests to take, hold, release and publish single blocks; out come block numbers. A block
that nobody holds keeps its content, and can be found by it, until it is overwritten; then a slot of
the host tier may take it over. Knows nothing of tables or promises: `BlockPool` stands in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tidemill.runtime.kvcache.block_span import BlockSpan
from tidemill.runtime.kvcache.eviction_order import EvictionOrder
from tidemill.runtime.kvcache.host_tier import NO_HOST, HostCounters, HostRoom, HostTier
from tidemill.runtime.kvcache.retention import DEFAULT_RETENTION, Retention
from tidemill.runtime.kvcache.reuse_index import ReuseIndex

BlockCopy = tuple[int, int]
"""Source and destination: blocks, or host slots."""


class BlockStore:
    """A fixed number of blocks and their content. `clock` gives seconds.

    `num_extra_holds` counts, for each block, the holders beyond the first."""

    def __init__(
        self,
        num_blocks: int,
        span: BlockSpan,
        clock: Callable[[], float],
        room: HostRoom = NO_HOST,
    ) -> None:
        assert num_blocks > 0 and span.tokens_per_block > 0, (num_blocks, span)
        self.num_blocks = num_blocks
        self.num_offloaded = self.num_onboarded = 0
        self._copies: list[BlockCopy] = []
        self.host = HostTier(room, num_blocks, clock)
        self.num_extra_holds = 0
        self.tokens_per_block = span.tokens_per_block
        # Last in, first out: a block just released is the likeliest to be in the CPU's cache.
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._evictable = EvictionOrder(clock)
        self.index = ReuseIndex()
        # Nobody ever holds a host slot.
        self._num_holders = [0] * (num_blocks + room.num_blocks)
        self._block_to_wish: dict[int, Retention] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._empty) + len(self._evictable)

    @property
    def host_counters(self) -> HostCounters:
        """What the host tier holds now, and what went there and came back since the start."""
        host = self.host
        return HostCounters(len(host.slots), host.num_used, self.num_offloaded, self.num_onboarded)

    def is_held(self, block: int) -> bool:
        """Say whether somebody holds a block."""
        return self._num_holders[block] > 0

    def is_sole(self, block: int) -> bool:
        """Say whether a block has one holder."""
        return self._num_holders[block] == 1

    def take(self) -> int:
        """Hold a block to be overwritten: an empty one, or else the next in order of eviction."""
        if self._empty:
            block = self._empty.pop()
        else:
            block, wish = self._evictable.pop()
            self._block_to_wish.pop(block, None)
            self._offload(block, wish)
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
        if block in self.index:
            self._evictable.add(block, self._block_to_wish.get(block, DEFAULT_RETENTION))
        else:
            self._block_to_wish.pop(block, None)
            self._empty.append(block)

    def publish(self, block: int, parent: bytes, key: bytes, tokens: Sequence[int]) -> None:
        """Let a block be found, all of whose positions are computed; the first of equals stays."""
        slot = self.index.find(key)
        if slot is not None and slot in self.host.slots:
            self.host.claim(slot)
            self.index.remove(slot)
            self.host.give_back(slot)
        self.index.add(block, parent, key, tokens)

    def take_copy(self, source: int) -> int:
        """Hold a block that begins with the content of another, or of a claimed host slot."""
        block = self.take()
        # The source itself may have been the next to be overwritten: it holds the content already.
        if block != source:
            self._copies.append((source, block))
        return block

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Hand over the copies to be made, in order, before anything is written."""
        copies, self._copies = self._copies, []
        return tuple(copies)

    def claim(self, blocks: Iterable[int]) -> dict[int, Retention]:
        """Keep the host slots among these from being overwritten; returns them with their wishes.

        Each is to be brought back or kept again.
        """
        slots = self.host.slots
        return {slot: self.host.claim(slot) for slot in blocks if slot in slots} if slots else {}

    def bring_back(self, slot: int, wish: Retention) -> int:
        """Hold a block that gets a claimed slot's content; the slot is empty afterwards."""
        block = self.take()
        self.index.move(slot, block)
        self.host.give_back(slot)
        self._copies.append((slot, block))
        self._block_to_wish[block] = wish
        self.num_onboarded += 1
        return block

    def _offload(self, block: int, wish: Retention) -> None:
        """Move a block's content to the host tier where that has room for it; else forget it."""
        slot = self.host.room_for(wish)
        if slot is None:
            self.index.remove(block)
            return
        if slot in self.index:
            self.index.remove(slot)
        self.index.move(block, slot)
        self.host.keep(slot, wish)
        self._copies.append((block, slot))
        self.num_offloaded += 1

    def retain(self, block: int, wish: Retention) -> None:
        """Note how long a block is to be kept when it is released."""
        self._block_to_wish[block] = wish

    def check(self, holders: Sequence[int]) -> None:
        """Recompute every invariant; `holders` counts who holds each block."""
        num_blocks, held = self.num_blocks, self._num_holders
        assert (list(holders), sum(held[num_blocks:])) == (held[:num_blocks], 0), "lost or shared"
        self.host.check({block for block in self.index.blocks() if block in self.host.slots})
        assert sum(max(0, count - 1) for count in holders) == self.num_extra_holds
        free = [block for block in range(self.num_blocks) if not holders[block]]
        cached = [block for block in free if block in self.index]
        empty = [block for block in free if block not in self.index]
        assert sorted(self._empty) == empty, "empty block lost or found"
        assert all(b in self._evictable for b in cached) and len(cached) == len(self._evictable)
        assert self._block_to_wish.keys() <= set(range(self.num_blocks)) - set(empty)
        self.index.check()
