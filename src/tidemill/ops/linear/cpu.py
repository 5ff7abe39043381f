"""Linear layers on the CPU: y[m, n] = sum_k x[m, k] w[n, k], with the epilogue fused.

Legend: M rows (a run-time number), N outputs in panels of 32, K inputs. Work is units of one panel
and one row tile, panel by panel; threads take contiguous ranges of units, so that a panel's weights
are read once from memory (twice where two threads meet in it) and serve all row tiles. While a
panel's tiles multiply, each of them prefetches its share of the next panel. Which tile heights are
used, and whether quantised words are taken apart once a panel, is the table's choice (tactics.py)
by the number of rows; the bits of an output never depend on it (tile.py). Cost is 2*M*N*K FLOPs
and N*K weight bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES, Isa
from tidemill.codegen.kernel import Frame, Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I64
from tidemill.codegen.vector_math import silu
from tidemill.ops.cpu_elements import store_f32
from tidemill.ops.layout import (
    PANEL,
    group_bytes,
    k_step,
    padded_k,
    panel_bytes,
    panel_header_bytes,
    scale_at,
)
from tidemill.ops.linear.fetch_ahead import FIELDS as AHEAD_FIELDS
from tidemill.ops.linear.fetch_ahead import STEP_BITS, UnitOfThread, claim_piece, no_piece
from tidemill.ops.linear.formats import Format
from tidemill.ops.linear.prepared import PreparedFormat, emit_prepare, prepared
from tidemill.ops.linear.tactics import Bucket, Prefetch, TacticTable, merged, tile_heights
from tidemill.ops.linear.tile import Tiles

FIELDS = ("rows", "x", "w", "bias", "y", "y_row_bytes", "panels")
SCRATCH_FIELDS = ("scratch", "scratch_bytes")  # where weights are quantised

Epilogue = Callable[[Isa, Pointer, Value, list[Value]], None]


@dataclass(frozen=True)
class LinearKernels:
    """The linear layers of one format and input width: tiles shared by all epilogues."""

    module: Module
    isa: Isa
    format: Format
    k: int
    piece_bytes: int = 0  # of the cache, that a unit fetches ahead
    _functions: dict[tuple[Tiles, int], Function] = field(default_factory=dict)

    def emit(
        self,
        symbol: str,
        table: TacticTable,
        epilogue: Epilogue,
        has_bias: bool,
        fetches_ahead: bool = False,
    ) -> Kernel:
        """Emit the kernel of one epilogue: this thread's units, by the tactic of its bucket."""
        has_scratch = self.format.weight.is_quantized
        fields = FIELDS + (SCRATCH_FIELDS if has_scratch else ())
        fields += AHEAD_FIELDS if fetches_ahead else ()
        kernel, frame = open_kernel(self.module, symbol, fields)
        num_rows, above = frame.count("rows"), 0
        for bucket in merged(table):
            loop, is_here = self._loop(bucket, above), num_rows > above
            above = bucket.max_rows
            with frame.f.when(is_here & (num_rows <= above) if above else is_here):
                loop.emit(frame, num_rows, epilogue, has_bias, fetches_ahead)
        return kernel

    def _loop(self, bucket: Bucket, above: int) -> UnitLoop:
        """The loop of a bucket's tactic, with the tiles that it needs emitted once each."""
        tactic = bucket.tactic
        wide = prepared(self.format) if tactic.is_prepared else None
        tiles = Tiles(self.module, wide or self.format, self.k, tactic.prefetch, self.piece_bytes)
        most = min(tactic.tile_rows, tiles.format.tile_rows)
        heights = tile_heights(most, above, bucket.max_rows)
        for rows in heights:
            if (tiles, rows) not in self._functions:
                self._functions[tiles, rows] = tiles.emit(rows)
        functions = {rows: self._functions[tiles, rows] for rows in heights}
        return UnitLoop(self.isa, tiles, most, functions)


@dataclass(frozen=True)
class UnitLoop:
    """One bucket's loop over this thread's units of (panel, row tile)."""

    isa: Isa
    tiles: Tiles
    tile_rows: int
    functions: dict[int, Function]

    @property
    def format(self) -> Format:
        return self.tiles.format

    @property
    def panel_bytes(self) -> int:
        return panel_bytes(self.tiles.k, self.format.weight)

    def emit(
        self, frame: Frame, num_rows: Value, epilogue: Epilogue, has_bias: bool, fetches_ahead: bool
    ) -> None:
        f, tile_rows = frame.f, self.tile_rows
        sums = f.stack(F32, max(self.functions) * PANEL)
        num_tiles = (num_rows + (tile_rows - 1)) // tile_rows
        rows_a_tile = (num_rows + num_tiles - 1) // num_tiles
        first, last = frame.share(frame.integer("panels") * num_tiles)
        with f.loop(first, last) as unit:
            panel = unit // num_tiles
            tile = unit - panel * num_tiles
            start = tile * rows_a_tile
            rows = (num_rows - start).min(rows_a_tile)
            w = frame.pointer("w", F32).bytes(panel * self.panel_bytes)
            x = frame.pointer("x", F32).bytes(start * self.tiles.x_row_bytes)
            words = self._words(frame, w, tile.eq(0) | unit.eq(first))
            fetched = self._next(w, tile, num_tiles)
            ahead = no_piece(w)
            if fetches_ahead and self.tiles.prefetch is not Prefetch.NONE:
                ahead = self._claim(frame, UnitOfThread(unit, first, last), w)
            for height, function in self.functions.items():
                with f.when(rows.eq(height)):
                    f.call(function, x, w, words, sums, *fetched, *ahead)
            bias = _bias(frame, panel) if has_bias else None
            with f.loop(0, rows) as m:
                x_row = x.bytes(m * self.tiles.x_row_bytes)
                vectors = [self._finish(sums.at(m * PANEL), w, x_row, j) for j in range(2)]
                if bias:
                    vectors = [v + b for v, b in zip(vectors, bias, strict=True)]
                y = frame.pointer("y", F32).bytes((start + m) * frame.integer("y_row_bytes"))
                epilogue(self.isa, y, panel, vectors)

    def _words(self, frame: Frame, w: Pointer, is_new: Value) -> Pointer:
        """The words that tiles multiply: the panel's own, or prepared when the panel is new."""
        form, f = self.format, frame.f
        packed = w.bytes(panel_header_bytes(form.weight))
        if not isinstance(form, PreparedFormat):
            return packed
        scratch = frame.pointer("scratch", F32)
        to = scratch.bytes(frame.thread * frame.integer("scratch_bytes"))
        size, k = form.weight.group_size, self.tiles.k
        num_words = (size or padded_k(k, form.weight)) // k_step(form.weight)
        with f.when(is_new):
            if not size:
                emit_prepare(f, form, packed, to, num_words)
                return to
            prepared_bytes = self.tiles.num_steps(size) * self.tiles.step_bytes
            with f.loop(0, k // size) as g:
                header = packed.bytes(g * group_bytes(form.weight))
                words = header.bytes(PANEL * form.weight.group_header_bytes)
                emit_prepare(f, form, words, to.bytes(g * prepared_bytes), num_words)
        return to

    def _next(self, w: Pointer, tile: Value, num_tiles: Value) -> tuple[Pointer, Value]:
        """A tile's share of the next panel, to prefetch: `next_share` and `next_step` of tiles."""
        share = w.f.constant(self.panel_bytes, I64) // num_tiles
        step = w.f.constant(self.tiles.packed_step_bytes << STEP_BITS, I64) // num_tiles
        return w.bytes(tile * share + self.panel_bytes), step

    def _claim(self, frame: Frame, at: UnitOfThread, w: Pointer) -> tuple[Pointer, Value]:
        """What the unit's tile fetches for the attention that follows, and how fast."""
        step = (self.tiles.piece_bytes << STEP_BITS) // self.tiles.all_steps
        return claim_piece(frame, at, w, step)

    def _finish(self, sums: Pointer, w: Pointer, x_row: Pointer, j: int) -> Value:
        """Vector j of one row's products, from its raw sums."""
        form = self.format
        is_float = bool(form.weight.group_size)
        raw = sums.of(F32 if is_float else form.sum_type.scalar).vec(j * LANES, LANES)
        x_scale = x_row.bytes(scale_at(self.tiles.k)) if form.activation is DType.Q8 else None
        return form.finish(raw, w, j, x_scale)


def _bias(frame: Frame, panel: Value) -> list[Value]:
    bias = frame.pointer("bias", F32).at(panel * PANEL)
    return [bias.vec(j * LANES, LANES) for j in range(2)]


def store(isa: Isa, y: Pointer, panel: Value, vectors: list[Value]) -> None:
    """y = the products, in f32."""
    for j, value in enumerate(vectors):
        y.at(panel * PANEL).put(j * LANES, value)


def add_residual(isa: Isa, y: Pointer, panel: Value, vectors: list[Value]) -> None:
    """y += the products: the residual stream is updated in place."""
    at = y.at(panel * PANEL)
    for j, value in enumerate(vectors):
        at.put(j * LANES, at.vec(j * LANES, LANES) + value)


def gate_silu(dtype: DType) -> Epilogue:
    """y = silu(first vector) * second: a panel holds 16 outputs of each branch."""

    def epilogue(isa: Isa, y: Pointer, panel: Value, vectors: list[Value]) -> None:
        joined = silu(vectors[0]) * vectors[1]
        store_f32(isa, y.bytes(panel * (LANES * dtype.itemsize_bytes)), 0, joined, dtype)

    return epilogue
