"""Tactics of linear layers: rows of a register tile, prefetching, words taken apart once or not.

A `TacticTable` is data: for each bucket of rows (a run-time number) the tactic that its products
take. All tactics of one format give the same bits, so that a table changes speed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tidemill.base.dtypes import DType

# Rows of a step at which tactics may change: one sequence, a few, one tile, two, several, a prompt.
BUCKETS = (1, 4, 8, 14, 16, 32, 64, 0)


class Prefetch(Enum):
    """What tiles prefetch: nothing, their own stream some way ahead, or a share of the next panel.

    Where reading alone is the limit, the CPU's own prefetchers are best left alone.
    """

    NONE = "none"
    STREAM = "stream"
    NEXT = "next"


@dataclass(frozen=True)
class LinearTactic:
    """`tile_rows` bounds the rows of a tile; `is_prepared` takes a panel's words apart once."""

    tile_rows: int
    prefetch: Prefetch
    is_prepared: bool = False

    @property
    def name(self) -> str:
        form = "_prepared" if self.is_prepared else ""
        return f"rows{self.tile_rows}_{self.prefetch.value}{form}"


@dataclass(frozen=True)
class Bucket:
    """A tactic for numbers of rows up to `max_rows`, above the bucket before; 0 has no limit."""

    max_rows: int
    tactic: LinearTactic


TacticTable = tuple[Bucket, ...]


def tile_heights(tile_rows: int, above: int, max_rows: int) -> list[int]:
    """Heights of the tiles that a bucket's rows, above < rows <= max_rows, are divided into.

    As few tiles as may be, of equal height but for the last.
    """
    if not max_rows:
        return list(range(1, tile_rows + 1))
    heights = set()
    for rows in range(above + 1, max_rows + 1):
        num_tiles = -(-rows // tile_rows)
        height = -(-rows // num_tiles)
        heights |= {height, rows - (num_tiles - 1) * height}
    return sorted(heights)


def tactics_of(weight: DType, activation: DType) -> tuple[LinearTactic, ...]:
    """All tactics that a format's products may take."""
    own = [LinearTactic(rows, prefetch) for prefetch in Prefetch for rows in (14, 8)]
    once = [LinearTactic(rows, Prefetch.NEXT, is_prepared=True) for rows in (14, 8)]
    return (*own, *once) if _has_parts(weight, activation) else tuple(own)


def default_table(weight: DType, activation: DType) -> TacticTable:
    """The shipped table of a format, measured for 512-bit vectors (docs/LOG.md, 2026-11-28)."""
    few = (
        Bucket(4, LinearTactic(14, Prefetch.NONE)),
        Bucket(14, LinearTactic(14, Prefetch.STREAM)),
    )
    if _has_parts(weight, activation):
        return (*few, Bucket(0, LinearTactic(14, Prefetch.NEXT, is_prepared=True)))
    two_tiles = Bucket(28, LinearTactic(14, Prefetch.NEXT))
    return (*few, two_tiles, Bucket(0, LinearTactic(14, Prefetch.STREAM)))


def _has_parts(weight: DType, activation: DType) -> bool:
    """Whether a word of weights must be taken apart before it is multiplied."""
    return weight.is_quantized and (weight, activation) != (DType.Q8, DType.Q8)


def tactic_for(table: TacticTable, rows: int) -> LinearTactic:
    """The tactic of a number of rows."""
    return next(b.tactic for b in table if rows <= b.max_rows or not b.max_rows)


def merged(table: TacticTable) -> TacticTable:
    """The same choices in as few buckets as they need."""
    following = [*table[1:], None]
    return tuple(
        bucket
        for bucket, after in zip(table, following, strict=True)
        if after is None or after.tactic != bucket.tactic
    )
