"""Tactics of linear layers: rows of a register tile, prefetching, words taken apart once or not.

A `TacticTable` is data: for each bucket of rows (a run-time number) the tactic that its products
take. All tactics of one format give the same bits, so that a table changes speed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tidemill.ops.linear.format_contract import Format
from tidemill.ops.linear.formats_q4 import Q4Format
from tidemill.ops.linear.prepared import prepared

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

    As few tiles as may be, whose heights differ by one at most.
    """
    heights = set()
    # Beyond the square of a tile's rows, heights are `tile_rows` and one less.
    for rows in range(above + 1, (max_rows or above + tile_rows**2) + 1):
        num_tiles = -(-rows // tile_rows)
        heights |= {rows // num_tiles, -(-rows // num_tiles)}
    return sorted(heights)


def tactics_of(form: Format) -> tuple[LinearTactic, ...]:
    """All tactics that a format's products may take: high tiles and lower ones."""
    own = [
        LinearTactic(rows, prefetch) for prefetch in Prefetch for rows in _heights(form.tile_rows)
    ]
    wide = prepared(form)
    once = _heights(wide.tile_rows) if wide else ()
    return (*own, *(LinearTactic(rows, Prefetch.NEXT, is_prepared=True) for rows in once))


def _heights(most: int) -> tuple[int, ...]:
    return (most, _lower(most), -(-most * 4 // 7)) if most > 2 else (most,)


def _lower(most: int) -> int:
    """Where many tiles follow one another, more outputs are written while the next multiplies."""
    return most - most // 7


def default_table(form: Format) -> TacticTable:
    """The shipped table of a format, measured for 512-bit vectors (docs/LOG.md, 2026-11-28)."""
    tile, wide = form.tile_rows, prepared(form)
    if isinstance(form, Q4Format):
        # Two instructions take a word apart: writing it down for later tiles costs more.
        low = _heights(tile)[-1]
        return (
            Bucket(low, LinearTactic(low, Prefetch.NONE)),
            Bucket(0, LinearTactic(low, Prefetch.NEXT)),
        )
    table = [Bucket(min(4, tile), LinearTactic(tile, Prefetch.NONE))]
    if tile > 4:
        table.append(Bucket(tile, LinearTactic(tile, Prefetch.STREAM)))
    most = wide.tile_rows if wide else tile
    return (*table, Bucket(0, LinearTactic(_lower(most), Prefetch.NEXT, wide is not None)))


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
