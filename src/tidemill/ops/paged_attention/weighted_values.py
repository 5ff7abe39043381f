"""Output of a row group: shares times the values of a chunk, summed over positions in order.

Only columns that some row sees are touched. The keys of what follows are fetched meanwhile.
"""

from __future__ import annotations

from itertools import pairwise

from tidemill.codegen.emitter import Pointer, Registers, Value
from tidemill.codegen.isa import LANES, V
from tidemill.ops.layout import ATTENTION_CHUNK
from tidemill.ops.paged_attention.tile_state import Chunk, TileState

_MOST_DIMS = 4  # vectors of the head width whose sums a row group holds at once


def add_values(tile: TileState, g: Value, chunk: Chunk) -> None:
    """output[r] += p[r] . v."""
    shape, step = tile.shape, tile.shape.cache.step
    shares = tile.p.at(g * (shape.rows_a_group * ATTENTION_CHUNK // step))
    head, at = chunk.following
    fetched = [head.keys(at + column) for column in tile.fetched_columns(g)]
    view, first = tile.view(chunk.start)
    for dims in _even_ranges(shape.cache.head_size // LANES, _MOST_DIMS):
        sums = tile.f.registers(V)
        keys = [(r, d) for r in range(shape.rows_a_group) for d in dims]
        for r, d in keys:
            sums[r, d] = tile.row(g, r).vec(d * LANES, LANES)
        with tile.f.loop(0, chunk.columns) as c:
            words = c * (LANES // step)
            values = view.values(first + c * LANES)
            fetches = [keys.bytes(words * head.key_step_bytes) for keys in fetched]
            _add_column(tile, dims, sums, values, shares.at(words), fetches)
        for r, d in keys:
            tile.row(g, r).put(d * LANES, sums[r, d])


def _add_column(
    tile: TileState,
    dims: range,
    sums: Registers,
    values: Pointer,
    shares: Pointer,
    fetched: list[Pointer],
) -> None:
    """Sixteen positions; each step fetches as many words of keys as keeps pace with the values."""
    shape, math = tile.shape, tile.shape.math
    view = tile.head if tile.widened is None else tile.widened
    chunk_words = ATTENTION_CHUNK // math.step
    first_word, last_word = (at * LANES // math.step for at in (dims.start, dims.stop))
    with tile.f.loop(0, LANES // math.step, 2) as t:
        for u in range(2):
            at = values.bytes((t + u) * view.value_step_bytes)
            vectors = {d: math.load_w(at.bytes(d * LANES * view.word_bytes)) for d in dims}
            for keys in fetched:
                for word in range(first_word, last_word, chunk_words):
                    keys.bytes((t + (word + u)) * shape.cache.key_step_bytes).prefetch(0)
            for r in range(shape.rows_a_group):
                share = math.load_x(shares.at(r * chunk_words + u).at(t))
                for d in dims:
                    sums[r, d] = math.dot(sums[r, d], vectors[d], share)


def _even_ranges(count: int, most: int) -> list[range]:
    """Cut `count` into the fewest ranges of at most `most`, of nearly equal lengths."""
    parts = -(-count // most)
    borders = [count * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(borders)]
