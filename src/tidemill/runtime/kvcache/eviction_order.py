"""The cached blocks that nobody holds, in the order in which they may be overwritten.

Lowest retention priority first, within one the longest unused. When the duration of a wish is over,
the block counts as the longest unused of the default priority. Knows nothing of content or tables.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable

from tidemill.runtime.kvcache.retention import DEFAULT_PRIORITY, Retention


class EvictionOrder:
    """A queue of block numbers by priority, then age. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._levels: dict[int, OrderedDict[int, None]] = {}
        self._level_of: dict[int, int] = {}
        # (time of expiry, block, ticket): entries of blocks that left meanwhile are stale.
        self._expiring: list[tuple[float, int, int]] = []
        self._ticket_of: dict[int, tuple[int, float]] = {}
        self._next_ticket = 0

    def __len__(self) -> int:
        return len(self._level_of)

    def __contains__(self, block: int) -> bool:
        return block in self._level_of

    def add(self, block: int, wish: Retention) -> None:
        """Let a block be evicted, as the most recently used of its priority."""
        assert block not in self._level_of, block
        self._put(block, wish.priority)
        if wish.duration_ms is not None and wish.priority != DEFAULT_PRIORITY:
            self._next_ticket += 1
            expiry = self._clock() + wish.duration_ms / 1e3
            self._ticket_of[block] = self._next_ticket, expiry
            heapq.heappush(self._expiring, (expiry, block, self._next_ticket))

    def remove(self, block: int) -> Retention:
        """Take out a block that is used again; returns what is left of its wish."""
        level = self._level_of.pop(block)
        ticket = self._ticket_of.pop(block, None)
        blocks = self._levels[level]
        del blocks[block]
        if not blocks:
            del self._levels[level]
        if ticket is None:
            return Retention(level)
        return Retention(level, max(0.0, ticket[1] - self._clock()) * 1e3)

    def pop(self) -> tuple[int, Retention]:
        """Take the block to be overwritten next, with what is left of its wish."""
        if self._expiring:
            self._expire()
        block = next(iter(self._levels[min(self._levels)]))
        return block, self.remove(block)

    def _put(self, block: int, level: int) -> None:
        self._level_of[block] = level
        self._levels.setdefault(level, OrderedDict())[block] = None

    def _expire(self) -> None:
        now = self._clock()
        while self._expiring and self._expiring[0][0] <= now:
            _, block, ticket = heapq.heappop(self._expiring)
            if self._ticket_of.get(block, (0, 0.0))[0] == ticket:
                self.remove(block)
                self._put(block, DEFAULT_PRIORITY)
                self._levels[DEFAULT_PRIORITY].move_to_end(block, last=False)
        if len(self._expiring) > 2 * len(self._ticket_of) + 64:
            self._expiring = [
                e for e in self._expiring if self._ticket_of.get(e[1], (0, 0.0))[0] == e[2]
            ]
            heapq.heapify(self._expiring)
