"""Memory that steps write: on small pages for a process's first step, then on huge ones.

Each layer's part of the key-value cache begins megabytes behind the last, so a first step on huge
pages has the system find and clear 120 MB for the sample model's first block; on small pages it is
less than one. Huge pages save later steps address translations. Knows nothing of what is written.
Source: decision 030.
"""

from __future__ import annotations

import time

from tidemill.device.cpu import (
    Bytes,
    allocate,
    allow_huge_pages,
    has_huge_pages,
    take_huge_pages,
)


class StepMemory:
    """Reserves memory, and moves it to huge pages when it has been written."""

    def __init__(self) -> None:
        self._memories: list[Bytes] = []
        self._ranges: list[tuple[Bytes, int, int]] = []

    def reserve(self, size_bytes: int, part_bytes: int = 0, first_bytes: int = 0) -> Bytes:
        """Reserve zeroed memory; with parts, the first step writes to the beginning of each."""
        memory = allocate(size_bytes, are_huge_allowed=False)
        self._memories.append(memory)
        part_bytes = part_bytes or max(size_bytes, 1)
        for start in range(0, size_bytes, part_bytes):
            self._ranges.append((memory, start, min(first_bytes or part_bytes, part_bytes)))
        return memory

    def move(self, deadline: float) -> bool:
        """Move what steps have written until the deadline; returns whether some is left.

        Units: the deadline in seconds of `time.perf_counter`.
        """
        if not has_huge_pages():
            self._ranges.clear()
        while self._memories:
            allow_huge_pages(self._memories.pop())
        while self._ranges:
            take_huge_pages(*self._ranges.pop())
            if time.perf_counter() > deadline:
                break
        return bool(self._ranges)
