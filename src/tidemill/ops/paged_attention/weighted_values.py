"""Output of a row group: shares times the values of a chunk, summed over positions in order.

Only columns that some row sees are touched. The values of what follows are fetched meanwhile.
"""

from __future__ import annotations

from itertools import pairwise

from tidemill.codegen.emitter import Pointer, Registers, Value
from tidemill.codegen.isa import LANES, V
from tidemill.ops.layout import ATTENTION_CHUNK
from tidemill.ops.paged_attention.tile_state import COLUMNS, Chunk, TileState

_MOST_DIMS = 4  # vectors of the head width whose sums a row group holds at once


def add_values(tile: TileState, g: Value, chunk: Chunk) -> None:
    """output[r] += p[r] . v."""
    shape, words = tile.shape, LANES // tile.shape.cache.step
    shares = tile.p.at(g * (shape.rows_a_group * ATTENTION_CHUNK // shape.cache.step))
    head, at = chunk.following
    fetched = [head.values(at + column) for column in tile.fetched_columns(g)]
    view, first = tile.view(chunk.start)
    for dims in _even_ranges(shape.cache.head_size // LANES, _MOST_DIMS):
        sums = tile.f.registers(V)
        keys = [(r, d) for r in range(shape.rows_a_group) for d in dims]
        for r, d in keys:
            sums[r, d] = tile.row(g, r).vec(d * LANES, LANES)
        with tile.f.loop(0, chunk.columns) as c:
            column = view.values(first + c * LANES), shares.at(c * words)
            _add_column(tile, dims, sums, column, fetched, c * words)
        for r, d in keys:
            tile.row(g, r).put(d * LANES, sums[r, d])
        with tile.f.loop(chunk.columns * words, COLUMNS * words) as t:
            _fetch(tile, dims, fetched, t)


def _add_column(
    tile: TileState,
    dims: range,
    sums: Registers,
    column: tuple[Pointer, Pointer],
    fetched: list[Pointer],
    first: Value,
) -> None:
    """Sixteen positions' values and shares; word `first` of the chunk is their first."""
    math, (values, shares) = tile.shape.math, column
    view = tile.head if tile.widened is None else tile.widened
    with tile.f.loop(0, LANES // math.step, 2) as t:
        for u in range(2):
            at = values.bytes((t + u) * view.value_step_bytes)
            vectors = {d: math.load_w(at.bytes(d * LANES * view.word_bytes)) for d in dims}
            _fetch(tile, dims, fetched, first + (t + u))
            for r in range(tile.shape.rows_a_group):
                share = math.load_x(shares.at(r * (ATTENTION_CHUNK // math.step) + u).at(t))
                for d in dims:
                    sums[r, d] = math.dot(sums[r, d], vectors[d], share)


def _fetch(tile: TileState, dims: range, fetched: list[Pointer], t: Value) -> None:
    """What follows is as large as this chunk: its part for word `t` of the chunk and `dims`."""
    step, line_bytes = tile.shape.cache.step, LANES * tile.shape.cache.word_bytes
    first, last = (at * LANES // step for at in (dims.start, dims.stop))
    for line in range(first, last, ATTENTION_CHUNK // step):
        for column in fetched:
            column.bytes((t + line) * line_bytes).prefetch(0, cache_level=2)


def _even_ranges(count: int, most: int) -> list[range]:
    """Cut `count` into the fewest ranges of at most `most`, of nearly equal lengths."""
    parts = -(-count // most)
    borders = [count * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(borders)]
