"""Causal attention over the paged cache on the CPU, for any mix of prefill chunks and decodes.

Legend: a tile is up to `tile_tokens` consecutive tokens of one sequence; G query heads share a
key-value head; R = tokens * G rows of a tile; C chunk of 64 cached positions; H head width.
Formula: online softmax base 2 over chunks 0, 1, ... : m' = max(m, max s), o = o * 2^(m - m') +
2^(s - m') v. Work items are (tile, key-value head), dealt to threads in turn.
Promise: batch-invariant and deterministic. Chunks always start at multiples of 64 of the sequence,
a row's operations depend on its position alone, and positions beyond a row's own contribute exact
zeros, so decode, prefill and any chunking give the same bits. With a window, a tile starts at the
chunk of the first position that any of its rows sees; chunks before it would change nothing.
f32 accumulation; probabilities are rounded to the activation type. Cost is 4*H FLOPs for each
(query head, position) and the cache read once for a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.abi import TILE_WORDS
from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Registers, Value
from tidemill.codegen.isa import LANES, Isa, V
from tidemill.codegen.kernel import Frame, Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I32, I64, PTR
from tidemill.codegen.vector_math import exp2
from tidemill.ops.cpu_elements import PairMath, store_f32
from tidemill.ops.layout import ATTENTION_CHUNK, CacheLayout, activation_row

FIELDS = ("tiles", "num_tiles", "tables", "table_row", "q", "k", "v", "y")
MASKED = -1e30
_COLUMNS = ATTENTION_CHUNK // LANES
_DIM_GROUP = 4
# Where 16 positions are cached: the block's byte offset, the position within the block.
Place = tuple[Value, Value]


def tile_tokens(group: int) -> int:
    """Tokens of a prefill tile: about 12 rows, so that a chunk of K serves many queries."""
    return max(1, 12 // group)


@dataclass(frozen=True)
class AttentionKernel:
    """Shapes of one model's heads; a row sees its last `window` positions, 0 means all."""

    isa: Isa
    num_heads: int
    cache: CacheLayout
    window: int = 0

    @property
    def math(self) -> PairMath:
        return PairMath(self.isa, self.cache.dtype)

    @property
    def activation(self) -> DType:
        return self.math.activation

    @property
    def group(self) -> int:
        return self.num_heads // self.cache.num_kv_heads

    @property
    def _suffix(self) -> str:
        return f"_w{self.window}" if self.window else ""

    @property
    def _row_bytes(self) -> int:
        width = self.num_heads * self.cache.head_size
        return activation_row(width, self.activation) * self.activation.itemsize_bytes

    def first_chunk(self, position: Value) -> Value | int:
        """Where the chunk starts that holds the first position that a row's window reaches."""
        if not self.window:
            return 0
        first = (position - (self.window - 1)).max(0)
        return first // ATTENTION_CHUNK * ATTENTION_CHUNK

    def is_seen(self, lanes: Value, end: Value) -> Value:
        """Which lanes lie in a window that ends before lane `end`."""
        if not self.window:
            return lanes < end
        return (lanes < end) & (lanes >= end - self.window)

    def emit(self, module: Module, symbol: str) -> Kernel:
        """Emit the kernel and one body for each tile height."""
        bodies = {n: self._emit_tile(module, n) for n in sorted({1, tile_tokens(self.group)})}
        kernel, frame = open_kernel(module, symbol, FIELDS)
        f, heads = frame.f, self.cache.num_kv_heads
        items = frame.count("num_tiles") * heads
        with f.loop(0, (items - frame.thread + frame.num_threads - 1) // frame.num_threads) as n:
            item = frame.thread + n * frame.num_threads
            tile = frame.pointer("tiles", I32).at((item // heads) * TILE_WORDS)
            args = self._item_args(frame, tile, item % heads)
            tokens = tile[1].to(I64)
            for height, body in bodies.items():
                chosen = tokens.eq(1) if height == 1 else tokens > 1
                with f.when(chosen if len(bodies) > 1 else tokens > 0):
                    f.call(body, *args, tokens)
        return kernel

    def _item_args(self, frame: Frame, tile: Pointer, head: Value) -> list[Value]:
        row, position = tile[0].to(I64), tile[2].to(I64)
        table = frame.pointer("tables", I32).at(tile[3].to(I64) * frame.integer("table_row"))
        size = self.cache.dtype.itemsize_bytes
        head_offset = head * (self.cache.head_elements * size)
        group_offset = head * (self.group * self.cache.head_size * self.activation.itemsize_bytes)
        q, y = (
            frame.pointer(name, F32).bytes(row * self._row_bytes + group_offset)
            for name in ("q", "y")
        )
        k, v = (frame.pointer(name, F32).bytes(head_offset) for name in ("k", "v"))
        return [q, k, v, table, y, position]

    def _emit_tile(self, module: Module, tokens: int) -> Function:
        f = module.function(
            f"attention_tile_{tokens}{self._suffix}", q=PTR, k=PTR, v=PTR, table=PTR, y=PTR,
            position=I64, tokens=I64,
        )  # fmt: skip
        _Tile(self, f, tokens).emit()
        return f


@dataclass(frozen=True)
class _Chunk:
    """Cached positions [start, start + 64) of a tile that sees positions below `end`.

    `following` are the places of the next chunk, to be prefetched.
    """

    start: Value
    end: Value
    places: list[Place]
    following: list[Place]


class _CachedHead:
    """One key-value head of the cache, seen through a sequence's block table."""

    def __init__(self, cache: CacheLayout, k: Pointer, v: Pointer, table: Pointer) -> None:
        self.cache, self.k, self.v, self.table = cache, k, v, table
        self.word_bytes = cache.step * cache.dtype.itemsize_bytes

    def places(self, start: Value) -> list[Place]:
        """The places of a chunk's columns."""
        cache = self.cache
        block_bytes = cache.block_elements * cache.dtype.itemsize_bytes
        places = []
        for c in range(_COLUMNS):
            at = start + c * LANES
            block = self.table[at // cache.tokens_per_block].to(I64)
            places.append((block * block_bytes, at % cache.tokens_per_block))
        return places

    def keys(self, place: Place) -> Pointer:
        block, position = place
        return self.k.bytes(block + position * self.word_bytes)

    def key_step(self, keys: Pointer, step: Value | int) -> Pointer:
        """The same 16 keys, `step` words of the head width further on."""
        return keys.bytes(step * (self.cache.tokens_per_block * self.word_bytes))

    def values(self, place: Place) -> Pointer:
        block, position = place
        row_bytes = self.cache.head_size * self.cache.dtype.itemsize_bytes
        return self.v.bytes(block + position * row_bytes)


class _Tile:
    """One tile's body: state of R rows over the chunks of their sequence."""

    def __init__(self, kernel: AttentionKernel, f: Function, tokens: int) -> None:
        self.kernel, self.f, self.tokens = kernel, f, tokens
        self.group, self.width = kernel.group, kernel.cache.head_size
        self.num_rows = tokens * self.group
        self.row_groups = _groups(self.num_rows, kernel.isa.attention_rows)
        q, k, v, table, y = f.args[:5]
        self.q_in, self.y = q.as_pointer(F32), y.as_pointer(F32)
        self.head = _CachedHead(
            kernel.cache, k.as_pointer(F32), v.as_pointer(F32), table.as_pointer(I32)
        )
        self.position, self.count = f.args[5], f.args[6]
        size = kernel.activation.itemsize_bytes
        self.q = f.stack(F32, self.num_rows * self.width * size // 4)
        self.p = f.stack(F32, self.num_rows * ATTENTION_CHUNK * size // 4)
        self.o = f.stack(F32, self.num_rows * self.width)
        self.top, self.total, self.scores = (f.registers(V) for _ in range(3))

    def emit(self) -> None:
        f = self.f
        self._load_queries()
        for r in range(self.num_rows):
            self.top[r], self.total[r] = f.constant(MASKED, V), f.zero(V)
        for i in range(0, self.num_rows * self.width, LANES):
            self.o.put(i, f.zero(V))
        end = self.position + self.count
        with f.loop(self.kernel.first_chunk(self.position), end, ATTENTION_CHUNK) as start:
            chunk = _Chunk(
                start, end, self.head.places(start), self.head.places(start + ATTENTION_CHUNK)
            )
            for rows in self.row_groups:
                self._score(rows, chunk)
                for r in rows:
                    self._softmax(r, start)
            for rows in self.row_groups:
                self._accumulate(rows, chunk)
        self._store()

    def _token(self, t: int) -> Value:
        """Token t of the tile; beyond the last one, the last again (its result is not stored)."""
        return self.f.constant(t, I64).min(self.count - 1)

    def _load_queries(self) -> None:
        """Copy the tile's queries side by side."""
        size = self.kernel.activation.itemsize_bytes
        row_bytes = self.group * self.width * size
        for t in range(self.tokens):
            source = self.q_in.bytes(self._token(t) * self.kernel._row_bytes)
            to = self.q.bytes(t * row_bytes)
            for i in range(0, row_bytes, 4 * LANES):
                lanes = min(LANES, (row_bytes - i) // 4)
                to.put(i // 4, source.vec(i // 4, lanes))

    def _score(self, rows: range, chunk: _Chunk) -> None:
        """scores[r, c] = q[r] . k over the head width, in order."""
        f, cache, math = self.f, self.kernel.cache, self.kernel.math
        columns = [self.head.keys(place) for place in chunk.places]
        values = [self.head.values(place) for place in chunk.places]
        for r in rows:
            for c in range(_COLUMNS):
                self.scores[r, c] = f.zero(V)
        with f.loop(0, self.width // cache.step, 2) as d:
            for u in range(2):
                keys = [math.load_w(self.head.key_step(column, d + u)) for column in columns]
                if rows.start == 0:  # the chunk's values will be wanted next
                    for value in values:
                        value.bytes((d + u) * math.vector_bytes).prefetch(0)
                for r in rows:
                    query = math.load_x(self.q.at(r * (self.width // cache.step) + u).at(d))
                    for c in range(_COLUMNS):
                        self.scores[r, c] = math.dot(self.scores[r, c], keys[c], query)

    def _softmax(self, r: int, start: Value) -> None:
        """Fold a chunk's scores into the row's maximum and sum; leave probabilities in p."""
        f, activation = self.f, self.kernel.activation
        limit = self.position + self._token(r // self.group) + 1
        lanes = f.table(list(range(LANES)), I32)
        ends = [(limit - start - c * LANES).to(I32).splat(LANES) for c in range(_COLUMNS)]
        seen = [self.kernel.is_seen(lanes, end) for end in ends]
        scores = [f.select(seen[c], self.scores[r, c], MASKED) for c in range(_COLUMNS)]
        peak = scores[0].max(scores[1]).max(scores[2].max(scores[3])).lanes_max()
        new_top = self.top[r].max(peak)
        fade = exp2(self.top[r] - new_top)
        self.top[r] = new_top
        powers = [f.select(seen[c], exp2(scores[c] - new_top), 0.0) for c in range(_COLUMNS)]
        chunk_sum = (powers[0] + powers[1]) + (powers[2] + powers[3])
        self.total[r] = self.total[r].fma(fade, chunk_sum)
        size = activation.itemsize_bytes
        for c in range(_COLUMNS):
            to = self.p.bytes((r * ATTENTION_CHUNK + c * LANES) * size)
            store_f32(self.kernel.isa, to, 0, powers[c], activation)
        for i in range(r * self.width, (r + 1) * self.width, LANES):
            self.o.put(i, self.o.vec(i, LANES) * fade)

    def _accumulate(self, rows: range, chunk: _Chunk) -> None:
        """o[r] += p[r] . v over the chunk's positions in order, up to the tile's last one."""
        for dims in _groups(self.width // LANES, _DIM_GROUP):
            sums = self.f.registers(V)
            for r in rows:
                for d in dims:
                    sums[r, d] = self.o.vec(r * self.width + d * LANES, LANES)
            for c, place in enumerate(chunk.places):
                with self.f.when(chunk.start + c * LANES < chunk.end):
                    keys = self.head.keys(chunk.following[c]) if rows.start == 0 else None
                    self._accumulate_16(rows, dims, sums, c, self.head.values(place), keys)
            for r in rows:
                for d in dims:
                    self.o.put(r * self.width + d * LANES, sums[r, d])

    def _accumulate_16(
        self,
        rows: range,
        dims: range,
        sums: Registers,
        c: int,
        values: Pointer,
        next_keys: Pointer | None,
    ) -> None:
        cache, math = self.kernel.cache, self.kernel.math
        word_bytes = self.head.word_bytes
        chunk_words = ATTENTION_CHUNK // cache.step
        with self.f.loop(0, LANES // cache.step, 2) as t:
            for u in range(2):
                at = values.bytes((t + u) * (cache.head_size * word_bytes))
                vectors = {d: math.load_w(at.bytes(d * LANES * word_bytes)) for d in dims}
                if next_keys is not None:
                    row = (t + u) * (self.width // LANES)
                    for d in dims:
                        self.head.key_step(next_keys, row + d).prefetch(0)
                for r in rows:
                    base = r * chunk_words + c * (LANES // cache.step) + u
                    share = math.load_x(self.p.at(base).at(t))
                    for d in dims:
                        sums[r, d] = math.dot(sums[r, d], vectors[d], share)

    def _store(self) -> None:
        """y = o / total, for the tile's real tokens."""
        f, size = self.f, self.kernel.activation.itemsize_bytes
        for t in range(self.tokens):
            with f.when(self.count > t):
                y = self.y.bytes(t * self.kernel._row_bytes)
                for g in range(self.group):
                    r = t * self.group + g
                    inverse = f.constant(1.0, V) / self.total[r].lanes_sum()
                    for i in range(0, self.width, LANES):
                        value = self.o.vec(r * self.width + i, LANES) * inverse
                        to = y.bytes((g * self.width + i) * size)
                        store_f32(self.kernel.isa, to, 0, value, self.kernel.activation)


def _groups(count: int, size: int) -> list[range]:
    return [range(i, min(i + size, count)) for i in range(0, count, size)]
