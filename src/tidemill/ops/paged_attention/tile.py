"""One tile over one partition of its positions: scores, shares, and shares times values.

Legend: R rows (token-major, `group` query heads a token) in row groups whose sums fit the
registers; C chunk of 64 cached positions, four columns of 16; H head width. In: queries, a
key-value head of the cache, a range of positions. Out: the partial result of each row.
A row's exponent follows its maximum only where that grew by more than 8, which is the row's own
affair: shares stay below 2^8, and the output is hardly ever scaled again. Scaling by 2^0 changes
nothing, so that rows which need it may take their neighbours along.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Registers, Value
from tidemill.codegen.isa import LANES, Isa, V
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I16, I32, I64, PTR
from tidemill.codegen.vector_math import exp2
from tidemill.ops.cpu_elements import PairMath, store_f32
from tidemill.ops.layout import ATTENTION_CHUNK, CacheLayout
from tidemill.ops.paged_attention.cached_head import CachedHead, WidenedChunk, widened_floats
from tidemill.ops.paged_attention.partials import MASKED, Partials

MAX_SPARE_ROWS = 8  # that the last row group may have beyond the tile's own
_COLUMNS = ATTENTION_CHUNK // LANES
_MOST_DIMS = 4
_GROWTH = 8.0


@dataclass(frozen=True)
class TileShape:
    """Heads of one model, and the tokens of a tile."""

    isa: Isa
    cache: CacheLayout
    partials: Partials
    group: int
    tokens: int
    q_row_bytes: int
    window: int = 0

    def first_seen(self, position: Value) -> Value:
        """The first position that a row at `position` sees."""
        if not self.window:
            return position.f.constant(0, position.type)
        return (position - (self.window - 1)).max(0)

    def is_seen(self, lanes: Value, end: Value) -> Value:
        """Which lanes lie in a window that ends before lane `end`."""
        if not self.window:
            return lanes < end
        return (lanes < end) & (lanes >= end - self.window)

    @property
    def activation(self) -> DType:
        return self.partials.activation

    @property
    def num_row_groups(self) -> int:
        return -(-self.tokens * self.group // self.isa.attention_rows)

    @property
    def rows_a_group(self) -> int:
        return -(-self.tokens * self.group // self.num_row_groups)

    @property
    def num_rows(self) -> int:
        """Rows that have memory; the last group's may be more than the tile's."""
        return self.num_row_groups * self.rows_a_group


class TilePart:
    """The body of one tile height."""

    def __init__(self, shape: TileShape, module: Module, symbol: str) -> None:
        self.f = f = module.function(
            symbol, q=PTR, k=PTR, v=PTR, table=PTR, next_k=PTR, next_v=PTR, next_table=PTR,
            rows=PTR, position=I64, count=I64, start=I64, stop=I64,
        )  # fmt: skip
        self.shape, self.math = shape, PairMath(shape.isa, shape.cache.compute)
        self.width, self.words = shape.cache.head_size, shape.cache.head_size // self.math.step
        q, k, v, table, next_k, next_v, next_table, rows = (
            arg.as_pointer(F32) for arg in f.args[:8]
        )
        self.head = CachedHead(shape.cache, k, v, table.of(I32))
        self.next_head = CachedHead(shape.cache, next_k, next_v, next_table.of(I32))
        self.q_in, self.rows = q, rows
        self.position, self.count, self.start, self.stop = f.args[8:]
        size = shape.activation.itemsize_bytes
        self.q = f.stack(F32, shape.num_rows * self.width * size // 4)
        self.p = f.stack(F32, shape.num_rows * ATTENTION_CHUNK * size // 4)
        self.limits = f.stack(I32, shape.num_rows)
        self.widened: WidenedChunk | None = None
        if shape.cache.dtype.is_quantized:
            keys, values = (f.stack(F32, widened_floats(shape.cache)) for _ in range(2))
            self.widened = WidenedChunk(shape.isa, shape.cache, keys, values)
        self.scores = f.registers(V)

    def emit(self) -> Function:
        """Emit the body; chunks that every row sees whole need no masks."""
        f, shape = self.f, self.shape
        used = self.count * shape.group + (shape.rows_a_group - 1)
        self.num_groups = used // shape.rows_a_group
        self._load_queries()
        with f.loop(0, self.num_groups * shape.rows_a_group) as r:
            shape.partials.clear(self.rows.at(r * shape.partials.row_floats))
        end = self.stop.min(self.position + self.count)
        first = shape.first_seen(self.position) // ATTENTION_CHUNK * ATTENTION_CHUNK
        last_sees = shape.first_seen(self.position + (self.count - 1))
        with f.loop(self.start.max(first), end, ATTENTION_CHUNK) as start:
            is_whole = start + (ATTENTION_CHUNK - 1) <= self.position
            if shape.window:
                is_whole = is_whole & (start >= last_sees)
            with f.when(is_whole):
                self._chunk(start, end, is_whole=True)
            with f.when(is_whole.eq(0)):
                self._chunk(start, end, is_whole=False)
        return f

    def _load_queries(self) -> None:
        """Copy the queries side by side; tokens beyond the last are it again, not stored later."""
        shape, size = self.shape, self.shape.activation.itemsize_bytes
        row_bytes = shape.group * self.width * size
        for t in range(shape.tokens):
            token = self.f.constant(t, I64).min(self.count - 1)
            source = self.q_in.bytes(token * shape.q_row_bytes)
            to = self.q.bytes(t * row_bytes)
            for i in range(0, row_bytes, 4 * LANES):
                lanes = min(LANES, (row_bytes - i) // 4)
                to.put(i // 4, source.vec(i // 4, lanes))
        for r in range(shape.num_rows):
            token = self.f.constant(r // shape.group, I64).min(self.count - 1)
            self.limits[r] = (self.position + token + 1).to(I32)

    def _chunk(self, start: Value, end: Value, is_whole: bool) -> None:
        """Fold one chunk into every row; `end` is the end of what any of them sees."""
        f = self.f
        columns = f.constant(_COLUMNS, I64).min((end - start + (LANES - 1)) // LANES)
        following = self._following(start + ATTENTION_CHUNK, end)
        if self.widened is not None:
            self.widened.fill(self.head, start, columns)
        with f.loop(0, self.num_groups) as g:
            self._score(g, start, end, following, is_whole)
            self._share(g, start, is_whole)
        with f.loop(0, self.num_groups) as g:
            self._accumulate(g, start, columns, following)

    def _following(self, start: Value, end: Value) -> tuple[CachedHead, Value]:
        """What is wanted after this chunk, and from which position: the next tile's at the end."""
        f, head, other = self.f, self.head, self.next_head
        is_own = start < end
        pairs = ((head.k, other.k), (head.v, other.v), (head.table, other.table))
        k, v, table = (f.select(is_own, a, b).as_pointer(a.element) for a, b in pairs)
        return CachedHead(self.shape.cache, k, v, table), f.select(is_own, start, 0)

    def _view(self, start: Value) -> tuple[CachedHead | WidenedChunk, Value]:
        """Where this chunk is read from, and its first position there."""
        if self.widened is None:
            return self.head, start
        return self.widened, self.f.constant(0, I64)

    def _prefetched_columns(self, g: Value) -> list[Value]:
        """Each row group fetches its share of the columns that come next."""
        each = -(-_COLUMNS // self.shape.num_row_groups)
        return [(g * each + i).min(_COLUMNS - 1) * LANES for i in range(each)]

    def _score(
        self,
        g: Value,
        start: Value,
        end: Value,
        following: tuple[CachedHead, Value],
        is_whole: bool,
    ) -> None:
        """scores[r, c] = q[r] . k over the head width, in order.

        This chunk's values will be wanted next; where they are widened already, the next chunk's.
        """
        head, first = (self.head, start) if self.widened is None else following
        values = [head.values(first + at) for at in self._prefetched_columns(g)]
        for r in range(self.shape.rows_a_group):
            for c in range(_COLUMNS):
                self.scores[r, c] = self.f.zero(V)
        if is_whole:
            self._score_columns(g, start, range(_COLUMNS), values)
            return
        half = range(_COLUMNS // 2)
        self._score_columns(g, start, half, values)
        with self.f.when(start + len(half) * LANES < end):
            self._score_columns(g, start, range(len(half), _COLUMNS), [])

    def _score_columns(
        self, g: Value, start: Value, columns: range, fetched: list[Pointer]
    ) -> None:
        f, math, rows = self.f, self.math, self.shape.rows_a_group
        view, first = self._view(start)
        keys = {c: view.keys(first + c * LANES) for c in columns}
        fetch_bytes = LANES * self.shape.cache.word_bytes
        queries = self.q.at(g * (rows * self.words))
        with f.loop(0, self.words, 2) as d:
            for u in range(2):
                vectors = {
                    c: math.load_w(at.bytes((d + u) * view.key_step_bytes))
                    for c, at in keys.items()
                }
                for value in fetched:
                    value.bytes((d + u) * fetch_bytes).prefetch(0)
                for r in range(rows):
                    query = math.load_x(queries.at(r * self.words + u).at(d))
                    for c in columns:
                        self.scores[r, c] = math.dot(self.scores[r, c], vectors[c], query)

    def _share(self, g: Value, start: Value, is_whole: bool) -> None:
        """Turn scores into shares p = 2^(score - top), and add them to the row's sum."""
        f, partials, count = self.f, self.shape.partials, self.shape.rows_a_group
        rows = self.rows.at(g * (count * partials.row_floats))
        self._scale_scores(start)
        seen = {} if is_whole else {r: self._seen(g, r, start) for r in range(count)}
        for r, c in [(r, c) for r in seen for c in range(_COLUMNS)]:
            self.scores[r, c] = f.select(seen[r][c], self.scores[r, c], MASKED)
        self._raise_tops([rows.at(r * partials.row_floats) for r in range(count)])
        for r in range(count):
            row = rows.at(r * partials.row_floats)
            top = row.vec(partials.top_at, LANES)
            powers = [self._exp2(self.scores[r, c] - top) for c in range(_COLUMNS)]
            if seen:
                powers = [f.select(s, p, 0.0) for s, p in zip(seen[r], powers, strict=True)]
            sums = (powers[0] + powers[1]) + (powers[2] + powers[3])
            row.put(partials.total_at, row.vec(partials.total_at, LANES) + sums)
            self._store_shares(g, r, start, powers)

    def _scale_scores(self, start: Value) -> None:
        """Keys of 8 bits met the queries without their scales."""
        for c in range(_COLUMNS) if self.widened is not None else ():
            scales = self.head.scales(self.head.k, start + c * LANES)
            for r in range(self.shape.rows_a_group):
                self.scores[r, c] = self.scores[r, c] * scales

    def _seen(self, g: Value, r: int, start: Value) -> list[Value]:
        """Which lanes of each column the row sees."""
        limit = self.limits[g * self.shape.rows_a_group + r] - start.to(I32)
        lanes = self.f.table(list(range(LANES)), I32)
        ends = [(limit - c * LANES).splat(LANES) for c in range(_COLUMNS)]
        return [self.shape.is_seen(lanes, end) for end in ends]

    def _raise_tops(self, rows: list[Pointer]) -> None:
        """Where a row's maximum outgrew its exponent, scale what it has to the new one."""
        f, partials = self.f, self.shape.partials
        tops = [row.vec(partials.top_at, LANES) for row in rows]
        peaks = []
        for r in range(len(rows)):
            scores = [self.scores[r, c] for c in range(_COLUMNS)]
            peaks.append(scores[0].max(scores[1]).max(scores[2].max(scores[3])))
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
                for i in [*range(0, self.width, LANES), partials.total_at]:
                    row.put(i, row.vec(i, LANES) * fade)

    def _exp2(self, x: Value) -> Value:
        return exp2(x, is_rough=self.shape.activation is DType.BF16)

    def _store_shares(self, g: Value, r: int, start: Value, powers: list[Value]) -> None:
        """Round the row's shares; those of 8-bit values take the values' scales with them."""
        if self.widened is not None:
            at = [start + c * LANES for c in range(_COLUMNS)]
            scales = [self.head.scales(self.head.v, each) for each in at]
            powers = [power * scale for power, scale in zip(powers, scales, strict=True)]
        size = self.shape.activation.itemsize_bytes
        row = self.p.bytes((g * self.shape.rows_a_group + r) * (ATTENTION_CHUNK * size))
        for c, power in enumerate(powers):
            store_f32(self.shape.isa, row.bytes(c * LANES * size), 0, power, self.shape.activation)

    def _accumulate(
        self, g: Value, start: Value, columns: Value, following: tuple[CachedHead, Value]
    ) -> None:
        """output[r] += p[r] . v over the chunk's positions in order, up to the last one seen."""
        partials, count = self.shape.partials, self.shape.rows_a_group
        rows = self.rows.at(g * (count * partials.row_floats))
        shares = self.p.at(g * (count * ATTENTION_CHUNK // self.math.step))
        head, at = following
        fetched = [head.keys(at + column) for column in self._prefetched_columns(g)]
        for dims in _even_ranges(self.width // LANES, _MOST_DIMS):
            sums = self.f.registers(V)
            keys = [(r, d) for r in range(count) for d in dims]
            for r, d in keys:
                sums[r, d] = rows.vec(r * partials.row_floats + d * LANES, LANES)
            with self.f.loop(0, columns) as c:
                words = c * (LANES // self.math.step)
                view, first = self._view(start)
                values = view.values(first + c * LANES)
                self._accumulate_16(dims, sums, values, shares.at(words), fetched, words)
            for r, d in keys:
                rows.put(r * partials.row_floats + d * LANES, sums[r, d])

    def _accumulate_16(
        self,
        dims: range,
        sums: Registers,
        values: Pointer,
        shares: Pointer,
        fetched: list[Pointer],
        words: Value,
    ) -> None:
        cache, math = self.shape.cache, self.math
        view = self.head if self.widened is None else self.widened
        word_bytes, chunk_words = view.word_bytes, ATTENTION_CHUNK // math.step
        first_word, last_word = (at * LANES // math.step for at in (dims.start, dims.stop))
        with self.f.loop(0, LANES // math.step, 2) as t:
            for u in range(2):
                at = values.bytes((t + u) * view.value_step_bytes)
                vectors = {d: math.load_w(at.bytes(d * LANES * word_bytes)) for d in dims}
                for keys in fetched:
                    for first in range(first_word, last_word, chunk_words):
                        word = words + t + (first + u)
                        keys.bytes(word * cache.key_step_bytes).prefetch(0)
                for r in range(self.shape.rows_a_group):
                    share = math.load_x(shares.at(r * chunk_words + u).at(t))
                    for d in dims:
                        sums[r, d] = math.dot(sums[r, d], vectors[d], share)


def _even_ranges(count: int, most: int) -> list[range]:
    """Cut `count` into the fewest ranges of at most `most`, of nearly equal lengths."""
    parts = -(-count // most)
    borders = [count * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in zip(borders, borders[1:], strict=False)]
