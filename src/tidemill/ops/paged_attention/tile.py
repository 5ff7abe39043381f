"""The body of a tile: one partition of its positions, chunk by chunk, for all of its rows.

In: queries, a key-value head of the cache, a range of positions. Out: the partial result of each
row (partials.py). Two passes over the row groups for each chunk, so that keys, then values, stay
near: scores and shares, then shares times values.
"""

from __future__ import annotations

from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I32, I64, PTR
from tidemill.ops.layout import ATTENTION_CHUNK
from tidemill.ops.paged_attention.cached_head import CachedHead, WidenedChunk, widened_floats
from tidemill.ops.paged_attention.scores import score
from tidemill.ops.paged_attention.shares import share
from tidemill.ops.paged_attention.tile_state import COLUMNS, Chunk, TileShape, TileState
from tidemill.ops.paged_attention.weighted_values import add_values


class TilePart:
    """Emits the body of one tile height.

    Its function takes the tile's place in q, k and v, those of the next tile in k and v (for
    fetching), where the results go, the tile's first position and its tokens, and the partition.
    """

    def __init__(self, shape: TileShape, q_row_bytes: int, module: Module, symbol: str) -> None:
        self.f = f = module.function(
            symbol, q=PTR, k=PTR, v=PTR, table=PTR, next_k=PTR, next_v=PTR, next_table=PTR,
            rows=PTR, position=I64, count=I64, start=I64, stop=I64,
        )  # fmt: skip
        self.shape, self.q_row_bytes = shape, q_row_bytes
        q, k, v, table, next_k, next_v, next_table, rows = (
            arg.as_pointer(F32) for arg in f.args[:8]
        )
        self.q_in, self.next_head = q, CachedHead(shape.cache, next_k, next_v, next_table.of(I32))
        self.position, self.count, self.start, self.stop = f.args[8:]
        size, widened = shape.activation.itemsize_bytes, None
        if shape.cache.dtype.is_quantized:
            keys, values = (f.stack(F32, widened_floats(shape.cache)) for _ in range(2))
            widened = WidenedChunk(shape.isa, shape.cache, keys, values)
        self.tile = TileState(
            f,
            shape,
            q=f.stack(F32, shape.num_rows * shape.cache.head_size * size // 4),
            p=f.stack(F32, shape.num_rows * ATTENTION_CHUNK * size // 4),
            limits=f.stack(I32, shape.num_rows),
            rows=rows,
            head=CachedHead(shape.cache, k, v, table.of(I32)),
            widened=widened,
        )

    def emit(self) -> Function:
        """Emit the body; chunks that every row sees whole need no masks."""
        f, shape = self.f, self.shape
        used = self.count * shape.group + (shape.rows_a_group - 1)
        num_groups = used // shape.rows_a_group
        self._load_queries()
        with f.loop(0, num_groups * shape.rows_a_group) as r:
            shape.partials.clear(self.tile.rows.at(r * shape.partials.row_floats))
        end = self.stop.min(self.position + self.count)
        first = shape.first_seen(self.position) // ATTENTION_CHUNK * ATTENTION_CHUNK
        last_sees = shape.first_seen(self.position + (self.count - 1))
        with f.loop(self.start.max(first), end, ATTENTION_CHUNK) as start:
            is_whole = start + (ATTENTION_CHUNK - 1) <= self.position
            if shape.window:
                is_whole = is_whole & (start >= last_sees)
            with f.when(is_whole):
                self._fold(self._chunk(start, end, True), num_groups)
            with f.when(is_whole.eq(0)):
                self._fold(self._chunk(start, end, False), num_groups)
        return f

    def _load_queries(self) -> None:
        """Copy the queries side by side; tokens beyond the last are it again, not stored later."""
        f, shape, tile = self.f, self.shape, self.tile
        row_bytes = shape.group * shape.cache.head_size * shape.activation.itemsize_bytes
        for t in range(shape.tokens):
            token = f.constant(t, I64).min(self.count - 1)
            source = self.q_in.bytes(token * self.q_row_bytes)
            to = tile.q.bytes(t * row_bytes)
            for i in range(0, row_bytes, 4 * LANES):
                lanes = min(LANES, (row_bytes - i) // 4)
                to.put(i // 4, source.vec(i // 4, lanes))
        for r in range(shape.num_rows):
            token = f.constant(r // shape.group, I64).min(self.count - 1)
            tile.limits[r] = (self.position + token + 1).to(I32)

    def _chunk(self, start: Value, end: Value, is_whole: bool) -> Chunk:
        columns = self.f.constant(COLUMNS, I64).min((end - start + (LANES - 1)) // LANES)
        following = self._following(start + ATTENTION_CHUNK, end)
        return Chunk(start, end, columns, following, is_whole)

    def _following(self, start: Value, end: Value) -> tuple[CachedHead, Value]:
        """What is wanted after a chunk, and from which position: the next tile's at the end."""
        head, other = self.tile.head, self.next_head
        is_own = start < end

        def choose(own: Pointer, others: Pointer) -> Pointer:
            return self.f.select(is_own, own, others).as_pointer(own.element)

        k, v = choose(head.k, other.k), choose(head.v, other.v)
        table = choose(head.table, other.table)
        return CachedHead(self.shape.cache, k, v, table), self.f.select(is_own, start, 0)

    def _fold(self, chunk: Chunk, num_groups: Value) -> None:
        """Fold one chunk into every row."""
        tile = self.tile
        if tile.widened is not None:
            tile.widened.fill(tile.head, chunk.start, chunk.columns)
        with self.f.loop(0, num_groups) as g:
            share(tile, g, chunk, score(tile, g, chunk))
        with self.f.loop(0, num_groups) as g:
            add_values(tile, g, chunk)
