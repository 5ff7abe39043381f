"""Scores of a row group: queries times the keys of a chunk, summed over the head width in order.

They are left in memory for all of a partition, with each row's maximum, lane by lane. What a row
does not see scores MASKED.
"""

from __future__ import annotations

from tidemill.codegen.emitter import Pointer, Registers, Value
from tidemill.codegen.isa import LANES, V
from tidemill.codegen.types import I32
from tidemill.ops.paged_attention.partials import MASKED
from tidemill.ops.paged_attention.tile_state import COLUMNS, Chunk, TileState


def score(tile: TileState, g: Value, chunk: Chunk) -> None:
    """Leave the scores of a chunk, and take them into the rows' maxima.

    The keys of what follows are fetched meanwhile.
    """
    head, at = chunk.following
    fetched = [head.keys(at + column) for column in tile.fetched_columns(g)]
    if chunk.is_whole:
        _score_columns(tile, g, chunk, range(COLUMNS), fetched)
        return
    half = COLUMNS // 2
    _score_columns(tile, g, chunk, range(half), fetched)
    with tile.f.when(chunk.columns > half):
        _score_columns(tile, g, chunk, range(half, COLUMNS), [])


def _score_columns(
    tile: TileState,
    g: Value,
    chunk: Chunk,
    columns: range,
    fetched: list[Pointer],
) -> None:
    scores = tile.f.registers(V)
    for r in range(tile.shape.rows_a_group):
        for c in columns:
            scores[r, c] = tile.f.zero(V)
    math, rows, words = tile.shape.math, tile.shape.rows_a_group, tile.shape.words
    source, first = tile.source, tile.first_key(chunk.start)
    keys = {c: source.keys(first + c * LANES) for c in columns}
    queries = tile.q.at(g * (rows * words))
    with tile.f.loop(0, words, 2) as d:
        for u in range(2):
            vectors = {
                c: math.load_w(at.bytes((d + u) * source.key_step_bytes)) for c, at in keys.items()
            }
            for at in fetched:
                at.bytes((d + u) * tile.shape.cache.key_step_bytes).prefetch(0, cache_level=2)
            for r in range(rows):
                query = math.load_x(queries.at(r * words + u).at(d))
                for c in columns:
                    scores[r, c] = math.dot(scores[r, c], vectors[c], query)
    _leave(tile, g, chunk, columns, scores)


def _leave(tile: TileState, g: Value, chunk: Chunk, columns: range, scores: Registers) -> None:
    """Scale, mask and store; keys of 8 bits met the queries without their scales."""
    top_at, starts = tile.shape.partials.top_at, {c: chunk.start + c * LANES for c in columns}
    scales = {}
    if tile.widened is not None:
        scales = {c: tile.head.scales(tile.head.k, start) for c, start in starts.items()}
    for r in range(tile.shape.rows_a_group):
        row, to = tile.row(g, r), tile.scores_of(g, r)
        limit = tile.limits[g * tile.shape.rows_a_group + r]
        peak = row.vec(top_at, LANES)
        for c, start in starts.items():
            value = scores[r, c] * scales[c] if scales else scores[r, c]
            if not chunk.is_whole:
                value = tile.f.select(_seen(tile, limit, start), value, MASKED)
            to.put(start - tile.start, value)
            peak = peak.max(value)
        row.put(top_at, peak)


def _seen(tile: TileState, limit: Value, start: Value) -> Value:
    """Which of sixteen positions a row sees that sees nothing from `limit` on."""
    lanes = tile.f.table(range(LANES), I32)
    return tile.shape.is_seen(lanes, (limit - start.to(I32)).splat(LANES))
