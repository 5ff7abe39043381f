"""Linear layers on the CPU: y[m, n] = sum_k x[m, k] w[n, k], with the epilogue fused.

Legend: M rows (a run-time number), N outputs in panels of 32, K inputs. Work is units of one panel
and one row tile, panel by panel; threads take contiguous ranges of units, so that a panel's weights
are read once from memory (twice where two threads meet in it) and serve all row tiles; many rows
are divided instead, and each thread reads all panels. While a panel's tiles multiply, each of them
prefetches its share of the next panel (a thread's last one: of the one that it begins the next
layer with). Which tile heights are used, and whether coded words are taken apart once a panel,
is the table's choice (tactics.py) by the number of rows; the bits of an output never depend on it
(tile.py). Cost is 2*M*N*K FLOPs and N*K weight bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.kernel import Frame, Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I64
from tidemill.ops.layout import (
    PANEL,
    group_bytes,
    k_step,
    panel_bytes,
    panel_header_bytes,
)
from tidemill.ops.linear.epilogue import Epilogue
from tidemill.ops.linear.fetch_ahead import FIELDS as AHEAD_FIELDS
from tidemill.ops.linear.fetch_ahead import STEP_BITS, ThreadUnits
from tidemill.ops.linear.format_contract import Format, GroupedFormat
from tidemill.ops.linear.prepared import PreparedFormat, emit_prepare, prepared
from tidemill.ops.linear.tactics import Bucket, TacticTable, merged, tile_heights
from tidemill.ops.linear.tile import Tiles

NEXT_FIELDS = ("next_w", "next_panels", "next_panel_bytes")  # of the linear layer that follows
FIELDS = ("rows", "x", "w", "bias", "y", "y_row_bytes", "panels", *NEXT_FIELDS)
# So many row tiles for each thread, and it keeps to its rows; then panels come to each core. Where
# panels are small one is enough, unless the cache is fetched, too: SmolLM2's head of 32 rows took
# 2.08 ms for 2.18 (q8), 4.06 for 4.16 (bf16), one of 2,048 inputs 4 % more (Zen 4, 2026-11-28).
OWN_TILES = 4
SMALL_PANEL_BYTES = 40 << 10
SCRATCH_FIELDS = ("scratch", "scratch_bytes")  # where weights are coded


@dataclass(frozen=True)
class LinearKernel:
    """The linear layers of one format, input width and epilogue.

    `piece_bytes` of the cache are what a unit fetches for the attention that follows; 0: nothing.
    """

    module: Module
    format: Format
    k: int
    epilogue: Epilogue
    piece_bytes: int = 0

    def emit(self, symbol: str, table: TacticTable) -> Kernel:
        """Emit the kernel: this thread's units, by the tactic of the number of rows."""
        has_scratch = self.format.weight.is_coded
        fields = FIELDS + (SCRATCH_FIELDS if has_scratch else ())
        fields += AHEAD_FIELDS if self.piece_bytes else ()
        kernel, frame = open_kernel(self.module, symbol, fields)
        num_rows, above = frame.count("rows"), 0
        functions: dict[tuple[Tiles, int], Function] = {}
        for bucket in merged(table):
            loop, is_here = self._loop(symbol, bucket, above, functions), num_rows > above
            above = bucket.max_rows
            with frame.f.when(is_here & (num_rows <= above) if above else is_here):
                loop.emit(frame, num_rows)
        return kernel

    def _loop(
        self, symbol: str, bucket: Bucket, above: int, functions: dict[tuple[Tiles, int], Function]
    ) -> UnitLoop:
        """The loop of a bucket's tactic, with the tiles that it needs emitted once each."""
        tactic = bucket.tactic
        wide = prepared(self.format) if tactic.is_prepared else None
        form = wide or self.format
        tiles = Tiles(
            self.module, symbol, form, self.k, tactic.prefetch, self.epilogue, self.piece_bytes
        )
        most = min(tactic.tile_rows, tiles.format.tile_rows)
        is_small = panel_bytes(self.k, form.weight) <= SMALL_PANEL_BYTES
        own_tiles = 0 if bucket.max_rows else 1 if is_small else OWN_TILES
        fewest = min(above, most * own_tiles - 1) if own_tiles else above
        kinds = {False: tiles}
        if wide and not isinstance(wide, GroupedFormat):
            kinds[True] = replace(tiles, format=self.format, keeps_words=True)
        own: dict[tuple[bool, int], Function] = {}
        for rows in tile_heights(most, fewest, bucket.max_rows):
            for keeps_words, kind in kinds.items():
                if (kind, rows) not in functions:
                    functions[kind, rows] = kind.emit(rows)
                own[keeps_words, rows] = functions[kind, rows]
        return UnitLoop(tiles, most, own, own_tiles)


@dataclass(frozen=True)
class _Part:
    """A thread's part of the work: units of (panel, row tile) over some rows."""

    first_row: Value
    num_rows: Value
    num_tiles: Value
    first_unit: Value
    last_unit: Value
    are_own: Value


@dataclass(frozen=True)
class UnitLoop:
    """One bucket's loop over this thread's units of (panel, row tile).

    Functions are tiles' by whether they keep words, as a panel's first ones do, and by their rows.
    From `own_tiles` row tiles for each thread on, it keeps to its rows; 0: never.
    """

    tiles: Tiles
    tile_rows: int
    functions: dict[tuple[bool, int], Function]
    own_tiles: int

    @property
    def panel_bytes(self) -> int:
        return panel_bytes(self.tiles.k, self.tiles.format.weight)

    def emit(self, frame: Frame, num_rows: Value) -> None:
        f, tiles, part = frame.f, self.tiles, self._part(frame, num_rows)
        y_row_bytes, bias = frame.integer("y_row_bytes"), frame.pointer("bias", F32)
        num_tiles, first = part.num_tiles, part.first_unit
        last_panel = (part.last_unit - 1) // num_tiles
        next_w, first_row = self._next_layer(frame, part), frame.first_read_row(num_rows)
        pieces = ThreadUnits.of(frame, first, part.last_unit) if tiles.fetched_bytes else None
        with f.loop(first, part.last_unit) as unit:
            panel = unit // num_tiles
            tile = unit - panel * num_tiles
            start, end = (each * part.num_rows // num_tiles for each in (tile, tile + 1))
            rows, start = end - start, start + part.first_row
            w = frame.pointer("w", F32).bytes(panel * self.panel_bytes)
            x = frame.pointer("x", F32).bytes((start + first_row) * tiles.x_row_bytes)
            y_at = start * y_row_bytes + panel * tiles.epilogue.panel_bytes
            y = frame.pointer("y", F32).bytes(y_at)
            is_new = tile.eq(0) | unit.eq(first)
            words = self._words(frame, w, is_new)
            after = w.bytes(self.panel_bytes).to_address()
            after = f.select(panel.eq(last_panel), next_w, after).as_pointer(F32)
            fetched = self._next(after, tile, num_tiles)
            ahead = w, f.constant(0, I64)
            if pieces:
                step = (tiles.fetched_bytes << STEP_BITS) // tiles.all_steps
                ahead = pieces.piece(frame, unit, w, step)
            are_two = any(keeps_words for keeps_words, _ in self.functions)
            for (keeps_words, height), function in self.functions.items():
                is_one = rows.eq(height)
                with f.when(is_one & is_new.eq(keeps_words) if are_two else is_one):
                    args = (x, w, words, y, y_row_bytes, bias.at(panel * PANEL))
                    f.call(function, *args, *fetched, *ahead)

    def _part(self, frame: Frame, num_rows: Value) -> _Part:
        """Some units of all rows; or, if they make several tiles a thread, all of its own rows.

        Those are the rows that norms and the like gave it: they stay in its core's cache.
        """
        f, num_panels, none = frame.f, frame.integer("panels"), frame.f.constant(0, I64)
        never = none.ne(0)
        if not self.own_tiles:
            num_tiles = (num_rows + (self.tile_rows - 1)) // self.tile_rows
            return _Part(none, num_rows, num_tiles, *frame.share(num_panels * num_tiles), never)
        are_own = num_rows >= frame.num_threads * self._own_tiles(frame) * self.tile_rows
        first_row, last_row = frame.share(num_rows)
        first_row = f.select(are_own, first_row, none)
        num_rows = f.select(are_own, last_row, num_rows) - first_row
        num_tiles = (num_rows + (self.tile_rows - 1)) // self.tile_rows
        first, last = frame.share(num_panels * num_tiles)
        first, last = (
            f.select(are_own, none, first),
            f.select(are_own, num_panels * num_tiles, last),
        )
        return _Part(first_row, num_rows, num_tiles, first, last, are_own)

    def _own_tiles(self, frame: Frame) -> Value:
        """The row tiles of each thread from which on it keeps to its rows in this step."""
        own_tiles = frame.f.constant(self.own_tiles, I64)
        if self.tiles.fetched_bytes:
            fetches = frame.integer("fetch_to") - frame.integer("fetch_from")
            is_fetching = (frame.count("num_blocks") * fetches) > 0
            own_tiles = frame.f.select(is_fetching, frame.f.constant(OWN_TILES, I64), own_tiles)
        return own_tiles

    def _next_layer(self, frame: Frame, part: _Part) -> Value:
        """Where the panel lies with which this thread will begin the next linear layer."""
        first_panel, _ = frame.share(frame.integer("next_panels"))
        offset = first_panel * frame.integer("next_panel_bytes")
        offset = frame.f.select(part.are_own, frame.f.constant(0, I64), offset)
        return frame.pointer("next_w", F32).bytes(offset).to_address()

    def _words(self, frame: Frame, w: Pointer, is_new: Value) -> Pointer:
        """The words that tiles multiply: the panel's own, or prepared when the panel is new.

        Words of groups are prepared here, others by the panel's first tile.
        """
        form, f = self.tiles.format, frame.f
        packed = w.bytes(panel_header_bytes(form.weight, self.tiles.k))
        if not isinstance(form, PreparedFormat):
            return packed
        scratch = frame.pointer("scratch", F32)
        to = scratch.bytes(frame.thread * frame.integer("scratch_bytes"))
        size, k = form.weight.group_size, self.tiles.k
        if not size:
            return to
        num_words = size // k_step(form.weight)
        with f.when(is_new):
            prepared_bytes = self.tiles.num_steps(size) * self.tiles.step_bytes
            with f.loop(0, k // size) as g:
                header = packed.bytes(g * group_bytes(form.weight))
                words = header.bytes(PANEL * form.weight.group_header_bytes)
                emit_prepare(f, form, words, to.bytes(g * prepared_bytes), num_words)
        return to

    def _next(self, panel: Pointer, tile: Value, num_tiles: Value) -> tuple[Pointer, Value]:
        """A tile's share of the next panel, to prefetch: `next_share` and `next_step` of tiles."""
        share = panel.f.constant(self.panel_bytes, I64) // num_tiles
        step = panel.f.constant(self.tiles.packed_step_bytes << STEP_BITS, I64) // num_tiles
        return panel.bytes(tile * share), step
