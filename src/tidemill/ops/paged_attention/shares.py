"""Shares of a row group: p = 2^(score - top), added to each row's sum and left in memory.

A row's exponent `top` follows its maximum only where that grew by more than 8, which is the row's
own affair: shares stay below 2^8, and the output is hardly ever scaled again. Scaling by 2^0
changes nothing, so that rows which need it may take their neighbours along.
"""

from __future__ import annotations

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Registers, Value
from tidemill.codegen.isa import LANES
from tidemill.codegen.types import I16, I32
from tidemill.codegen.vector_math import exp2
from tidemill.ops.cpu_elements import store_f32
from tidemill.ops.layout import ATTENTION_CHUNK
from tidemill.ops.paged_attention.partials import MASKED
from tidemill.ops.paged_attention.tile_state import COLUMNS, Chunk, TileState

_GROWTH = 8.0


def share(tile: TileState, g: Value, chunk: Chunk, scores: Registers) -> None:
    """Turn scores into shares."""
    f, partials, count = tile.f, tile.shape.partials, tile.shape.rows_a_group
    rows = [tile.row(g, r) for r in range(count)]
    _scale_scores(tile, chunk, scores)
    seen = {} if chunk.is_whole else {r: _seen(tile, g, r, chunk.start) for r in range(count)}
    for r, c in [(r, c) for r in seen for c in range(COLUMNS)]:
        scores[r, c] = f.select(seen[r][c], scores[r, c], MASKED)
    _raise_tops(tile, rows, scores)
    is_rough = tile.shape.activation is DType.BF16
    for r, row in enumerate(rows):
        top = row.vec(partials.top_at, LANES)
        powers = [exp2(scores[r, c] - top, is_rough) for c in range(COLUMNS)]
        if seen:
            powers = [f.select(s, p, 0.0) for s, p in zip(seen[r], powers, strict=True)]
        sums = (powers[0] + powers[1]) + (powers[2] + powers[3])
        row.put(partials.total_at, row.vec(partials.total_at, LANES) + sums)
        _store(tile, g, r, chunk, powers)


def _scale_scores(tile: TileState, chunk: Chunk, scores: Registers) -> None:
    """Keys of 8 bits met the queries without their scales."""
    for c in range(COLUMNS) if tile.widened is not None else ():
        scales = tile.head.scales(tile.head.k, chunk.start + c * LANES)
        for r in range(tile.shape.rows_a_group):
            scores[r, c] = scores[r, c] * scales


def _seen(tile: TileState, g: Value, r: int, start: Value) -> list[Value]:
    """Which lanes of each column the row sees."""
    limit = tile.limits[g * tile.shape.rows_a_group + r] - start.to(I32)
    lanes = tile.f.table(list(range(LANES)), I32)
    ends = [(limit - c * LANES).splat(LANES) for c in range(COLUMNS)]
    return [tile.shape.is_seen(lanes, end) for end in ends]


def _raise_tops(tile: TileState, rows: list[Pointer], scores: Registers) -> None:
    """Where a row's maximum outgrew its exponent, scale what it has to the new one."""
    f, partials = tile.f, tile.shape.partials
    tops = [row.vec(partials.top_at, LANES) for row in rows]
    peaks = []
    for r in range(len(rows)):
        columns = [scores[r, c] for c in range(COLUMNS)]
        peaks.append(columns[0].max(columns[1]).max(columns[2].max(columns[3])))
    outgrown = [peak > top + _GROWTH for peak, top in zip(peaks, tops, strict=True)]
    any_row = outgrown[0]
    for mask in outgrown[1:]:
        any_row = any_row | mask
    with f.when(any_row.bits_as(I16).ne(0)):
        for row, top, peak in zip(rows, tops, peaks, strict=True):
            highest = peak.lanes_max()
            new = f.select(highest > top + _GROWTH, highest, top)
            row.put(partials.top_at, new)
            fade = exp2(top - new)
            for i in [*range(0, partials.width, LANES), partials.total_at]:
                row.put(i, row.vec(i, LANES) * fade)


def _store(tile: TileState, g: Value, r: int, chunk: Chunk, powers: list[Value]) -> None:
    """Round a row's shares; those of 8-bit values take the values' scales with them."""
    if tile.widened is not None:
        at = [chunk.start + c * LANES for c in range(COLUMNS)]
        scales = [tile.head.scales(tile.head.v, each) for each in at]
        powers = [power * scale for power, scale in zip(powers, scales, strict=True)]
    shape, size = tile.shape, tile.shape.activation.itemsize_bytes
    row = tile.p.bytes((g * shape.rows_a_group + r) * (ATTENTION_CHUNK * size))
    for c, power in enumerate(powers):
        store_f32(shape.isa, row.bytes(c * LANES * size), 0, power, shape.activation)
