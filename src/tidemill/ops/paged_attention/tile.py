"""The body of a tile: one partition of its positions, chunk by chunk, for all of its rows.

In: queries, a key-value head of the cache, a range of positions. Out: the partial result of each
row (partials.py). First all scores, chunk by chunk, so that keys stay near for all row groups; then
shares times values, with shares computed a column ahead.
"""

from __future__ import annotations

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES, V
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I32, I64, PTR
from tidemill.codegen.vector_math import exp2_tables
from tidemill.ops.layout import ATTENTION_CHUNK
from tidemill.ops.paged_attention.cached_head import CachedHead, WidenedPart, widened_floats
from tidemill.ops.paged_attention.partials import MASKED
from tidemill.ops.paged_attention.scores import score
from tidemill.ops.paged_attention.shares import end_shares, settle_tops, share, sum_shares
from tidemill.ops.paged_attention.tile_state import (
    COLUMNS,
    ROW_POSITIONS,
    Chunk,
    TileShape,
    TileState,
)
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
        self.position, self.count, start, self.stop = f.args[8:]
        size, widened = shape.activation.itemsize_bytes, None
        words = shape.num_rows * ROW_POSITIONS
        shares = weights = f.stack(F32, words * size // 4)
        if shape.cache.dtype.is_quantized:
            keys, values = (f.stack(F32, floats) for floats in widened_floats(shape.cache))
            widened = WidenedPart(shape.isa, shape.cache, keys, values)
            weights = f.stack(F32, words * size // 4)
        first = shape.first_seen(self.position) // ATTENTION_CHUNK * ATTENTION_CHUNK
        self.tile = TileState(
            f,
            shape,
            start=start.max(first),
            q=f.stack(F32, shape.num_rows * shape.cache.head_size * size // 4),
            scores=f.stack(F32, words),
            shares=shares,
            weights=weights,
            limits=f.stack(I32, shape.num_rows),
            exp2_tables=self._lay_exp2_tables(),
            rows=rows,
            head=CachedHead(shape.cache, k, v, table.of(I32)),
            widened=widened,
        )

    def emit(self) -> Function:
        """Emit the body."""
        f, shape, tile = self.f, self.shape, self.tile
        used = self.count * shape.group + (shape.rows_a_group - 1)
        num_groups = used // shape.rows_a_group
        end = self.stop.min(self.position + self.count)
        self._load_queries()
        self._score(num_groups, end)
        columns = tile.num_columns(end)

        def add(g: Value, start: Value, stop: Value) -> None:
            add_values(tile, g, start, stop, lambda at: self._chunk(at, end, False))

        if shape.goes_by_chunk:
            with f.loop(0, num_groups) as g:
                self._begin_values(g, columns)
            with f.loop(tile.start, end, ATTENTION_CHUNK) as at, f.loop(0, num_groups) as g:
                add(g, at, at + 1)
            with f.loop(0, num_groups) as g:
                sum_shares(tile, g, columns)
            return f
        self._begin_values(f.constant(0, I64), columns)
        with f.loop(0, num_groups) as g:
            with f.when(g + 1 < num_groups):
                self._begin_values(g + 1, columns)
            add(g, tile.start, end)
            sum_shares(tile, g, columns)
        return f

    def _lay_exp2_tables(self) -> Pointer | None:
        """Tables are read where they are used: in registers they would displace sums."""
        if not (self.shape.isa.has_lookup and self.shape.activation is DType.BF16):
            return None
        values = exp2_tables()
        tables = self.f.stack(F32, len(values))
        for i in range(0, len(values), LANES):
            tables.put(i, self.f.table(values[i : i + LANES], F32))
        self.f.memory_mark(tables)
        return tables

    def _score(self, num_groups: Value, end: Value) -> None:
        """All scores; chunks that every row sees whole need no masks."""
        f, shape, tile = self.f, self.shape, self.tile
        with f.loop(0, num_groups * shape.rows_a_group) as r:
            row = tile.rows.at(r * shape.partials.row_floats)
            row.put(shape.partials.top_at, f.constant(MASKED, V))
        last_sees = shape.first_seen(self.position + (self.count - 1))
        with f.loop(tile.start, end, ATTENTION_CHUNK) as start:
            is_whole = start + (ATTENTION_CHUNK - 1) <= self.position
            if shape.window:
                is_whole = is_whole & (start >= last_sees)
            if tile.widened is not None:
                columns = self._chunk(start, end, False).columns
                tile.widened.fill(tile.head, start, columns, start - tile.start)
            with f.when(is_whole), f.loop(0, num_groups) as g:
                score(tile, g, self._chunk(start, end, True))
            with f.when(is_whole.eq(0)), f.loop(0, num_groups) as g:
                score(tile, g, self._chunk(start, end, False))

    def _begin_values(self, g: Value, columns: Value) -> None:
        """What the products of a row group's first column wait for."""
        tile, shape = self.tile, self.shape
        settle_tops(tile, g)
        for r in range(shape.rows_a_group):
            share(tile, g, r, self.f.constant(0, I64))
            if shape.goes_by_chunk:
                shape.partials.clear_output(tile.row(g, r))
        end_shares(tile, g, columns)

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
        following = self._following(start + ATTENTION_CHUNK)
        return Chunk(start, end, columns, following, is_whole)

    def _following(self, start: Value) -> tuple[CachedHead, Value]:
        """What is wanted after a chunk, and from which position: the next tile's at the end."""
        head, other = self.tile.head, self.next_head
        is_own = start < self.position + self.count

        def choose(own: Pointer, others: Pointer) -> Pointer:
            return self.f.select(is_own, own, others).as_pointer(own.element)

        k, v = choose(head.k, other.k), choose(head.v, other.v)
        table = choose(head.table, other.table)
        return CachedHead(self.shape.cache, k, v, table), self.f.select(is_own, start, 0)
