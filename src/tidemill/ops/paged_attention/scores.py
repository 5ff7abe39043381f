"""Scores of a row group: queries times the keys of a chunk, summed over the head width in order."""

from __future__ import annotations

from tidemill.codegen.emitter import Pointer, Registers, Value
from tidemill.codegen.isa import LANES, V
from tidemill.ops.paged_attention.tile_state import COLUMNS, Chunk, TileState


def score(tile: TileState, g: Value, chunk: Chunk) -> Registers:
    """Return scores[r, c], sixteen positions each; without the scales of 8-bit keys.

    The keys of what follows are fetched meanwhile.
    """
    scores = tile.f.registers(V)
    head, at = chunk.following
    fetched = [head.keys(at + column) for column in tile.fetched_columns(g)]
    for r in range(tile.shape.rows_a_group):
        for c in range(COLUMNS):
            scores[r, c] = tile.f.zero(V)
    if chunk.is_whole:
        _score_columns(tile, g, chunk, scores, range(COLUMNS), fetched)
        return scores
    half = COLUMNS // 2
    _score_columns(tile, g, chunk, scores, range(half), fetched)
    with tile.f.when(chunk.columns > half):
        _score_columns(tile, g, chunk, scores, range(half, COLUMNS), [])
    return scores


def _score_columns(
    tile: TileState,
    g: Value,
    chunk: Chunk,
    scores: Registers,
    columns: range,
    fetched: list[Pointer],
) -> None:
    math, rows, words = tile.shape.math, tile.shape.rows_a_group, tile.shape.words
    view, first = tile.view(chunk.start)
    keys = {c: view.keys(first + c * LANES) for c in columns}
    queries = tile.q.at(g * (rows * words))
    with tile.f.loop(0, words, 2) as d:
        for u in range(2):
            vectors = {
                c: math.load_w(at.bytes((d + u) * view.key_step_bytes)) for c, at in keys.items()
            }
            for at in fetched:
                at.bytes((d + u) * tile.shape.cache.key_step_bytes).prefetch(0, cache_level=2)
            for r in range(rows):
                query = math.load_x(queries.at(r * words + u).at(d))
                for c in columns:
                    scores[r, c] = math.dot(scores[r, c], vectors[c], query)
