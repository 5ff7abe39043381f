"""Where the weights lie while an engine runs: mapped from its file, then copied to huge pages.

A step reads every weight once, so small pages cost an address translation for each 4 KiB: on the
sample model 17 % of a decode step. File mappings have small pages on most systems; anonymous
memory has huge ones where the system allows them. An engine computes on the mapping at once, so
that its first token does not wait, and the weights move between steps, by several threads, where
that memory is easily there; otherwise they stay mapped and shared. What has been copied is
forgotten piece by piece, and no step comes in the middle of a weight, which would read it in the
file again: so the weights never count twice. Knows nothing of steps.
Source: decision 030.
"""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tidemill.base.cpus import allowed_cpus, move_to
from tidemill.device.cpu import Array, Bytes, address_of, allocate, has_huge_pages
from tidemill.runtime.executor.free_memory import free_bytes

# Copies that would take more than this share of the free memory are not made.
MAX_SHARE_OF_FREE_MEMORY = 0.25
_PIECE_BYTES = 2 << 20  # each thread has one of them twice for a moment


class _Piece(NamedTuple):
    """Bytes [start, end); between pieces that begin a weight, there may be a step."""

    start: int
    end: int
    begins_weight: bool


class WeightsMemory:
    """An engine's weights; `address` says where one lies now, until `move` moves more of them."""

    def __init__(
        self,
        mapped: Array,
        ends: Iterable[int],
        num_threads: int,
        forget: Callable[[int, int], None],
    ) -> None:
        """Begin on the mapping; `ends` is where each weight ends in it.

        `forget` is told first byte and size of each piece that has been copied.
        """
        self._mapped, self._ends, self._forget = mapped, sorted(ends), forget
        self._num_threads, self._cpus = num_threads, allowed_cpus()
        self._copied: Bytes | None = None
        self._left = deque(_pieces(self._ends, mapped.nbytes))

    @property
    def num_bytes(self) -> int:
        return self._mapped.nbytes

    def address(self, offset: int) -> int:
        """Return the address of a byte: in the copy once its weight is there."""
        end = self._ends[bisect_right(self._ends, offset)]
        memory = self._mapped if end > self._num_moved or self._copied is None else self._copied
        return address_of(memory) + offset

    def move(self, deadline: float) -> bool:
        """Copy whole weights until the deadline, some at least; returns whether some are left.

        Units: the deadline in seconds of `time.perf_counter`. Addresses given before stay readable,
        but whoever reads there has the file's pages back.
        """
        if not self._left:
            return False
        if self._copied is None:
            if not has_huge_pages() or self.num_bytes > MAX_SHARE_OF_FREE_MEMORY * free_bytes():
                return False
            try:
                self._copied = allocate(self.num_bytes)
            except OSError:  # memory may be bounded in ways that nobody tells: `ulimit -v`, say
                return False
        from concurrent.futures import ThreadPoolExecutor  # costs a start 3 ms

        # On all CPUs, not only the one that the stepping thread is kept on.
        with ThreadPoolExecutor(self._num_threads, "", move_to, (self._cpus,)) as threads:
            list(threads.map(self._copy_until, [deadline] * self._num_threads))
        return bool(self._left)

    @property
    def _num_moved(self) -> int:
        return self._left[0].start if self._left else self.num_bytes

    def _copy_until(self, deadline: float) -> None:
        assert self._copied is not None
        with contextlib.suppress(IndexError):  # the other threads took the last ones
            while True:
                piece = self._left.popleft()
                part = slice(piece.start, piece.end)
                np.copyto(self._copied[part], self._mapped[part])
                self._forget(piece.start, piece.end - piece.start)
                if time.perf_counter() > deadline and self._left[0].begins_weight:
                    break


def _pieces(ends: Sequence[int], num_bytes: int) -> Iterator[_Piece]:
    """Cut weights, in order, into pieces: several small ones together, large ones in parts."""
    start = last = 0
    for end in [*ends[:-1], num_bytes]:
        if end - start > _PIECE_BYTES and last > start:
            yield _Piece(start, last, True)
            start = last
        if end - start > _PIECE_BYTES:
            for at in range(start, end, _PIECE_BYTES):
                yield _Piece(at, min(at + _PIECE_BYTES, end), at == start)
            start = end
        last = end
    if last > start:
        yield _Piece(start, last, True)
