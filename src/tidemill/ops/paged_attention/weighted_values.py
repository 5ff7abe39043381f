"""Output of a row group: shares times the values of a partition, summed over positions in order.

Only columns that some row sees are touched. The shares of a column are computed among the products
of the column before, which leave those units idle that shares need most. The values of what
follows are fetched meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from tidemill.codegen.emitter import Pointer, Registers, Value
from tidemill.codegen.isa import LANES, V
from tidemill.ops.layout import ATTENTION_CHUNK
from tidemill.ops.paged_attention.shares import share
from tidemill.ops.paged_attention.tile_state import COLUMNS, Chunk, TileState

_MOST_DIMS = 4  # vectors of the head width whose sums a row group holds at once


def add_values(
    tile: TileState, g: Value, start: Value, stop: Value, chunk_at: Callable[[Value], Chunk]
) -> None:
    """output[r] += p . v over positions [start, stop), and the shares of the columns to come."""
    f, shape = tile.f, tile.shape
    for dims in _even_ranges(shape.cache.head_size // LANES, _MOST_DIMS):
        sums = f.registers(V)
        keys = [(r, d) for r in range(shape.rows_a_group) for d in dims]
        for r, d in keys:
            so_far = tile.row(g, r).vec(d * LANES, LANES)
            sums[r, d] = so_far if shape.goes_by_chunk else f.zero(V)
        with f.loop(start, stop, ATTENTION_CHUNK) as at:
            _add_chunk(tile, g, chunk_at(at), dims, sums)
        for r, d in keys:
            tile.row(g, r).put(d * LANES, sums[r, d])


def _add_chunk(tile: TileState, g: Value, chunk: Chunk, dims: range, sums: Registers) -> None:
    words, (head, following) = LANES // tile.shape.cache.step, chunk.following
    assert tile.shape.rows_a_group <= words, "each word's products take one row's shares along"
    fetched = [head.values(following + column) for column in tile.fetched_columns(g)]
    first = tile.first_value(chunk.start)
    done = (chunk.start - tile.start) // LANES
    last = tile.num_columns(chunk.end) - 1
    with tile.f.loop(0, chunk.columns) as c:
        column = tile.source.values(first + c * LANES), (done + c) * words
        after = (done + c + 1).min(last)
        with tile.f.loop(0, words) as t:
            tile.f.memory_mark()
            if dims.start == 0:
                with tile.f.when(t < tile.shape.rows_a_group):
                    share(tile, g, t, after)
            _add_word(tile, g, dims, sums, column, t)
            _fetch(tile, dims, fetched, c * words + t)
    with tile.f.loop(chunk.columns * words, COLUMNS * words) as t:
        _fetch(tile, dims, fetched, t)


def _add_word(
    tile: TileState, g: Value, dims: range, sums: Registers, column: tuple[Pointer, Value], t: Value
) -> None:
    """Word t of a column's values and shares."""
    math, (values, first) = tile.shape.math, column
    at = values.bytes(t * tile.source.value_step_bytes)
    vectors = {d: math.load_w(at.bytes(d * LANES * tile.source.word_bytes)) for d in dims}
    for r in range(tile.shape.rows_a_group):
        weight = math.load_x(tile.weights_of(g, r).at(first).at(t))
        for d in dims:
            sums[r, d] = math.dot(sums[r, d], vectors[d], weight)


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
