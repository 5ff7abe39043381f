"""Tactics of linear layers: how many rows a register tile has, and how often words are taken apart.

A `TacticTable` is data: for each bucket of rows (a run-time number) the tactic that its products
take. All tactics of one format give the same bits, so that a table changes speed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.dtypes import DType

# Rows of a step at which tactics may change: one sequence, a few, one tile, two, several, a prompt.
BUCKETS = (1, 4, 8, 14, 16, 32, 64, 0)


@dataclass(frozen=True)
class LinearTactic:
    """`tile_rows` bounds the rows of a tile; `is_prepared` takes a panel's words apart once."""

    tile_rows: int
    is_prepared: bool = False

    @property
    def name(self) -> str:
        return f"rows{self.tile_rows}" + ("_prepared" if self.is_prepared else "")


@dataclass(frozen=True)
class Bucket:
    """A tactic for numbers of rows up to `max_rows`, above the bucket before; 0 has no limit."""

    max_rows: int
    tactic: LinearTactic


TacticTable = tuple[Bucket, ...]


def tactics_of(weight: DType) -> tuple[LinearTactic, ...]:
    """All tactics that a format's products may take."""
    forms = (False, True) if weight.is_quantized else (False,)
    return tuple(LinearTactic(rows, form) for form in forms for rows in (14, 12, 10, 8))


def default_table(weight: DType) -> TacticTable:
    """The shipped table of a format."""
    if not weight.is_quantized:
        return (Bucket(0, LinearTactic(14)),)
    return (Bucket(14, LinearTactic(14)), Bucket(0, LinearTactic(14, is_prepared=True)))


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
