"""Places the arena's buffers: each gets an offset that no other buffer uses while it is live.

In: sizes and live ranges, counted in ops; out: offsets and the arena's size. Largest first, each
into the tightest gap that fits (best fit). Knows nothing of ops, graphs or what buffers hold;
`verify_memory_plan` judges the result without sharing code with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.base.debug import Level, say

ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class BufferRequest:
    """A buffer that is live in ops [first_op, last_op], both included.

    `first_op` writes it, `last_op` is the last that reads it.
    """

    name: str
    size_bytes: int
    first_op: int
    last_op: int

    def __post_init__(self) -> None:
        assert self.size_bytes >= 0, self
        assert self.first_op <= self.last_op, self


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets by buffer name, and the size of the arena that holds them all."""

    offsets: dict[str, int]
    total_bytes: int


def plan_memory(requests: Sequence[BufferRequest]) -> MemoryPlan:
    """Place every buffer on a multiple of 64 bytes, reusing what is no longer live.

    The order of the requests does not matter: equal requests give an equal plan.
    """
    placed: list[tuple[int, int, BufferRequest]] = []
    for request in sorted(requests, key=lambda r: (-r.size_bytes, r.first_op, r.name)):
        taken = sorted(
            (start, end)
            for start, end, other in placed
            if other.first_op <= request.last_op and request.first_op <= other.last_op
        )
        size = _padded(request.size_bytes)
        start = _tightest_gap(taken, size)
        placed.append((start, start + size, request))
    offsets = {request.name: start for start, _, request in placed}
    assert len(offsets) == len(requests), "two buffers have one name"
    plan = MemoryPlan(offsets, max((end for _, end, _ in placed), default=0))
    bound = lower_bound_bytes(requests)
    say(
        Level.PLANS,
        "builder",
        f"memory plan: {len(requests)} buffers in {plan.total_bytes} bytes "
        f"(live at once: {bound}, without reuse: {sum(_padded(r.size_bytes) for r in requests)})",
    )
    return plan


def lower_bound_bytes(requests: Sequence[BufferRequest]) -> int:
    """Return the most bytes that are live at one op: no plan can be smaller."""
    # Live bytes grow only where a buffer starts, so that only those ops need a look.
    return max(
        (
            sum(_padded(r.size_bytes) for r in requests if r.first_op <= op <= r.last_op)
            for op in {request.first_op for request in requests}
        ),
        default=0,
    )


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _tightest_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Return the start of the smallest gap between [start, end) ranges that fits, or their end."""
    best_start, best_gap = -1, -1
    cursor = 0
    for start, end in taken:
        gap = start - cursor
        if gap >= size and (best_start < 0 or gap < best_gap):
            best_start, best_gap = cursor, gap
        cursor = max(cursor, end)
    return cursor if best_start < 0 else best_start
