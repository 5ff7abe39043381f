"""Scores of a row group: queries times the keys of a chunk, summed over the head width in order."""

from __future__ import annotations

from tidemill.codegen.emitter import Pointer, Registers, Value
from tidemill.codegen.isa import LANES, V
from tidemill.ops.paged_attention.tile_state import COLUMNS, Chunk, TileState


def score(tile: TileState, g: Value, chunk: Chunk) -> Registers:
    """Return scores[r, c], sixteen positions each; without the scales of 8-bit keys.

    This chunk's values will be wanted next; where they are widened already, the next chunk's.
    """
    scores = tile.f.registers(V)
    head, first = (tile.head, chunk.start) if tile.widened is None else chunk.following
    values = [head.values(first + at) for at in tile.fetched_columns(g)]
    for r in range(tile.shape.rows_a_group):
        for c in range(COLUMNS):
            scores[r, c] = tile.f.zero(V)
    if chunk.is_whole:
        _score_columns(tile, g, chunk, scores, range(COLUMNS), values)
        return scores
    half = COLUMNS // 2
    _score_columns(tile, g, chunk, scores, range(half), values)
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
    fetch_bytes = LANES * tile.shape.cache.word_bytes
    queries = tile.q.at(g * (rows * words))
    with tile.f.loop(0, words, 2) as d:
        for u in range(2):
            vectors = {
                c: math.load_w(at.bytes((d + u) * view.key_step_bytes)) for c, at in keys.items()
            }
            for value in fetched:
                value.bytes((d + u) * fetch_bytes).prefetch(0)
            for r in range(rows):
                query = math.load_x(queries.at(r * words + u).at(d))
                for c in columns:
                    scores[r, c] = math.dot(scores[r, c], vectors[c], query)
