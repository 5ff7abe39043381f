"""A second, bounded pool in host memory: where content goes when its block is overwritten.

Slots are numbered after the blocks, so that a copy between both is a pair of numbers. In come
slots to keep, claim and give back; out come slots to fill. Knows nothing of content or tables:
`BlockStore` moves content between the pools.

Source: TensorRT-LLM's secondary pool (KvCacheConfig hostCacheSize, secondaryOffloadMinPriority).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill.runtime.kvcache.eviction_order import EvictionOrder
from tidemill.runtime.kvcache.retention import Retention

DEFAULT_OFFLOAD_MIN_PRIORITY = 30


@dataclass(frozen=True)
class HostRoom:
    """How many blocks fit, and from which retention priority on they are worth it."""

    num_blocks: int = 0
    min_priority: int = DEFAULT_OFFLOAD_MIN_PRIORITY


NO_HOST = HostRoom()


@dataclass(frozen=True)
class HostCounters:
    """Slots, slots in use; blocks moved there and brought back since the start."""

    num_blocks: int = 0
    num_used: int = 0
    num_offloaded: int = 0
    num_onboarded: int = 0


NO_HOST_COUNTERS = HostCounters()


class HostTier:
    """Slots [first, first + room.num_blocks). `clock` gives seconds."""

    def __init__(self, room: HostRoom, first: int, clock: Callable[[], float]) -> None:
        self.slots = range(first, first + room.num_blocks)
        self._min_priority = room.min_priority
        self._empty = list(reversed(self.slots))
        self._kept = EvictionOrder(clock)

    @property
    def num_used(self) -> int:
        """Slots that hold content."""
        return len(self._kept)

    def room_for(self, wish: Retention) -> int | None:
        """Return a slot for content of this wish, kept or empty; None when there is none for it.

        A kept slot is the longest unused of the lowest priority; what it held is lost.
        """
        if not self.slots or wish.priority < self._min_priority:
            return None
        if self._empty:
            return self._empty.pop()
        # All others may be claimed at this moment.
        return self._kept.pop()[0] if len(self._kept) else None

    def keep(self, slot: int, wish: Retention) -> None:
        """Let a slot be overwritten in its turn, as the most recently used of its priority."""
        self._kept.add(slot, wish)

    def claim(self, slot: int) -> Retention:
        """Take a slot out of the turn; returns what is left of its wish."""
        return self._kept.remove(slot)

    def give_back(self, slot: int) -> None:
        """Take back a claimed slot whose content has moved on."""
        self._empty.append(slot)

    def check(self, found: set[int]) -> None:
        """Recompute that slots are empty or kept, and that those with content are kept."""
        kept = {slot for slot in self.slots if slot in self._kept}
        assert kept == found and len(kept) == len(self._kept), "host block lost or shared"
        assert sorted(self._empty) == sorted(set(self.slots) - kept), "host slot lost"
