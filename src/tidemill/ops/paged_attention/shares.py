"""Shares of a row: p = 2^(score - top), where `top` is the row's maximum in the partition, or more.

A top is a whole number, so that partitions are joined by powers of two, which are exact. Shares
are rounded before they are summed up: what a row's values are divided by is what they were
multiplied with.
"""

from __future__ import annotations

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Value
from tidemill.codegen.isa import LANES, V
from tidemill.codegen.types import I32
from tidemill.codegen.vector_math import exp2, exp2_by_tables
from tidemill.ops.cpu_elements import store_f32
from tidemill.ops.paged_attention.partials import EMPTY
from tidemill.ops.paged_attention.tile_state import TileState

_BF16_ONES = 0x3F803F80


def settle_tops(tile: TileState, g: Value) -> None:
    """Turn the maxima of a row group's lanes into the rows' tops."""
    top_at = tile.shape.partials.top_at
    for r in range(tile.shape.rows_a_group):
        row = tile.row(g, r)
        row.put(top_at, row.vec(top_at, LANES).lanes_max().call("ceil").max(EMPTY))


def share(tile: TileState, g: Value, r: Value | int, c: Value) -> None:
    """Turn the scores of row r and the partition's column c into shares.

    The weights of 8-bit values are shares with the values' scales.
    """
    shape, at = tile.shape, c * LANES
    top = tile.row(g, r).vec(shape.partials.top_at, LANES)
    score = tile.scores_of(g, r).at(at).vec(0, LANES)
    if tile.exp2_tables is None:
        power = exp2(score - top, shape.activation is DType.BF16)
    else:
        power = exp2_by_tables(shape.isa, score - top, tile.exp2_tables)
    to = at * shape.activation.itemsize_bytes
    store_f32(shape.isa, tile.shares_of(g, r).bytes(to), 0, power, shape.activation)
    if tile.widened is not None:
        power = power * tile.head.scales(tile.head.v, tile.start + at)
        store_f32(shape.isa, tile.weights_of(g, r).bytes(to), 0, power, shape.activation)


def end_shares(tile: TileState, g: Value, columns: Value) -> None:
    """Behind the last column shares are zero, so that sums need not end with a column."""
    shape = tile.shape
    at = columns * (LANES * shape.activation.itemsize_bytes)
    for r in range(shape.rows_a_group):
        to, zero = tile.shares_of(g, r).bytes(at), tile.f.zero(V)
        store_f32(shape.isa, to, 0, zero, shape.activation)


def sum_shares(tile: TileState, g: Value, columns: Value) -> None:
    """Sum up each row's shares, lane by lane."""
    f, shape = tile.f, tile.shape
    step, rows = shape.math.step, range(shape.rows_a_group)
    word, ones = (I32, _BF16_ONES) if step == 2 else (V.scalar, 1.0)
    sums = f.registers(V)
    for r in rows:
        sums[r] = f.zero(V)
    with f.loop(0, (columns + (step - 1)) // step) as i:
        for r in rows:
            shares = tile.shares_of(g, r).of(word).at(i * LANES).vec(0, LANES)
            sums[r] = shape.math.dot(sums[r], f.constant(ones, shares.type), shares)
    for r in rows:
        tile.row(g, r).put(shape.partials.total_at, sums[r])
