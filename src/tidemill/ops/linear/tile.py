"""Register tiles of linear layers: up to `tile_rows` rows of x times one panel of 32 outputs.

Legend: rows m, vectors j (two of 16 outputs), steps s of k. A tile turns its sums into outputs
before they leave registers. Each output has one chain of sums over k, the same in every tile
(batch-invariant, deterministic): f32, or exact i32 where weights and activations are q8. While it
multiplies, a tile prefetches weights that come later, from where it is told to.
Measured: one chain loses nothing at M = 1, where memory is the limit (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I32, I64, PTR
from tidemill.ops.layout import (
    CACHE_LINE_BYTES,
    K_UNROLL,
    PANEL,
    activation_row,
    group_bytes,
    k_step,
    padded_k,
    panel_bytes,
    panel_header_bytes,
    round_up,
    scale_at,
)
from tidemill.ops.linear.epilogue import Epilogue
from tidemill.ops.linear.fetch_ahead import STEP_BITS
from tidemill.ops.linear.format_contract import Format, GroupedFormat
from tidemill.ops.linear.formats_bf12 import Bf12Format, ListedInputs
from tidemill.ops.linear.formats_q4 import load_header
from tidemill.ops.linear.prepared import PREFETCH_BYTES, PreparedFormat
from tidemill.ops.linear.tactics import Prefetch

_MOST_LINES_AHEAD = 4  # a step's, of the cache


@dataclass(frozen=True)
class Tiles:
    """The tiles of one kernel and tactic; each fetches a piece of the cache ahead.

    Of a huge piece it fetches the first part: what a step may ask for is code, too. A tile that
    keeps words takes the panel's apart, and leaves the parts in `words`.
    """

    module: Module
    symbol: str
    format: Format
    k: int
    prefetch: Prefetch
    epilogue: Epilogue
    piece_bytes: int = 0
    keeps_words: bool = False

    @property
    def is_prepared(self) -> bool:
        return isinstance(self.format, PreparedFormat)

    @property
    def x_row_bytes(self) -> int:
        activation = self.format.activation
        return activation_row(self.k, activation) * activation.itemsize_bytes

    @property
    def step_bytes(self) -> int:
        """Bytes of words that one step takes, both vectors'."""
        return 2 * self.format.vector_bytes

    def num_steps(self, inputs: int) -> int:
        """Steps over so many inputs."""
        return inputs // k_step(self.format.weight) * self.format.steps_a_word

    @property
    def all_steps(self) -> int:
        return self.num_steps(padded_k(self.k, self.format.weight))

    @property
    def packed_step_bytes(self) -> int:
        """Bytes of the packed panel that a step stands for, headers included."""
        return panel_bytes(self.k, self.format.weight) // self.all_steps

    @property
    def fetched_bytes(self) -> int:
        """What a tile fetches ahead; 0: nothing."""
        if self.prefetch is Prefetch.NONE:
            return 0
        return min(self.piece_bytes, self.all_steps * _MOST_LINES_AHEAD * CACHE_LINE_BYTES)

    def emit(self, rows: int) -> Function:
        """y[rows] = the epilogue of the products of `rows` rows of x with one panel.

        `words` are the panel's own, behind its header, or prepared ones; `y` is where the panel's
        part of the first row lies. With `Prefetch.NEXT`, `next_share` is what to prefetch first,
        `next_step` how much further each step does so, with `STEP_BITS` of fraction: where many
        tiles share a panel, a step's part is under a byte. A tile that fetches ahead does the same
        from `ahead` on, by `ahead_step` (fetch_ahead.py). Steps are those of the tile's format; of
        the prepared one where it keeps words.
        """
        kind = ("keeping",) if self.keeps_words else ()
        f = self.module.function(
            "_".join((self.symbol, self.format.name, *kind, self.prefetch.value, f"m{rows}")),
            x=PTR, panel=PTR, words=PTR, y=PTR, y_row_bytes=I64, bias=PTR,
            next_share=PTR, next_step=I64, ahead=PTR, ahead_step=I64,
        )  # fmt: skip
        _Tile(self, f, rows).emit()
        return f


class _Tile:
    """A tile under construction: its function, and the registers of its sums."""

    def __init__(self, tiles: Tiles, f: Function, rows: int) -> None:
        self.tiles, self.form, self.f, self.rows = tiles, tiles.format, f, rows
        x, panel, words, y, self.y_row_bytes, bias, share, share_step, ahead, ahead_step = f.args
        self.x, self.panel, self.words, self.y, self.bias = (
            each.as_pointer(F32) for each in (x, panel, words, y, bias)
        )
        self.fetched, per_step = f.registers(I64), self.form.num_parts if tiles.keeps_words else 1
        self.strides = {"next": share_step * per_step, "ahead": ahead_step * per_step}
        for name, first in (("next", share), ("ahead", ahead)):
            self.fetched[name] = first.as_pointer(F32).to_address() << STEP_BITS
        self.acc = f.registers(self.form.sum_type)
        self.outputs = [(m, j) for m in range(rows) for j in range(2)]

    def emit(self) -> None:
        self._claim_outputs()
        if isinstance(self.form, GroupedFormat):
            sums = self._emit_groups(self.form)
            self._finish(lambda m, j: sums.vec(m * PANEL + j * LANES, LANES))
            return
        for m, j in self.outputs:
            self.acc[m, j] = self.form.start(self.panel, j)
        words = self.words
        if self.tiles.keeps_words:
            words = self.panel.bytes(panel_header_bytes(self.form.weight, self.tiles.k))
        self._emit_steps(self.tiles.all_steps, self.x, words)
        self._finish(lambda m, j: self.acc[m, j])

    def _claim_outputs(self) -> None:
        """Have y's lines in the cache by the time that they are written."""
        y = self.y
        for _ in range(self.rows):
            for offset in range(0, self.tiles.epilogue.panel_bytes, CACHE_LINE_BYTES):
                y.prefetch(offset, is_write=True)
            y = y.bytes(self.y_row_bytes)

    def _finish(self, sum_of: Callable[[int, int], Value]) -> None:
        """Turn raw sums into outputs, and hand them to the epilogue row by row."""
        form, epilogue, x, y = self.form, self.tiles.epilogue, self.x, self.y
        for m in range(self.rows):
            x_scale = x.bytes(scale_at(self.tiles.k)) if form.activation is DType.Q8 else None
            vectors = [form.finish(sum_of(m, j), self.panel, j, x_scale) for j in range(2)]
            if epilogue.has_bias:
                vectors = [v + self.bias.vec(j * LANES, LANES) for j, v in enumerate(vectors)]
            epilogue.write(form.isa, y, vectors)
            x, y = x.bytes(self.tiles.x_row_bytes), y.bytes(self.y_row_bytes)

    def _emit_groups(self, form: GroupedFormat) -> Pointer:
        """Each group's sums are scaled and added to sums[rows][32] in memory."""
        f, tiles, size = self.f, self.tiles, form.weight.group_size
        sums = f.stack(F32, self.rows * PANEL)
        steps = tiles.num_steps(size)
        packed = self.panel.bytes(panel_header_bytes(form.weight, tiles.k))
        for m, j in self.outputs:
            sums.put(m * PANEL + j * LANES, form.start(self.panel, j))
        with f.loop(0, tiles.k // size) as g:
            header = packed.bytes(g * group_bytes(form.weight))
            first = header.bytes(PANEL * form.weight.group_header_bytes)
            if tiles.is_prepared:
                first = self.words.bytes(g * (steps * tiles.step_bytes))
            sums_of_x = [("x", m) for m in range(self.rows)] if form.ones(f) else []
            for key in (*self.outputs, *sums_of_x):
                self.acc[key] = f.zero(form.sum_type)
            self._emit_steps(steps, self.x.bytes(g * (steps * form.x_step_bytes)), first)
            # The sums stay in memory from group to group: registers are the dot products'.
            f.memory_mark()
            headers = [load_header(form.weight, header, j) for j in range(2)]
            for m in range(self.rows):
                x_row = self.x.bytes(m * tiles.x_row_bytes)
                summed = self.acc["x", m] if sums_of_x else None
                x_sum = form.sum_of_x(summed, x_row, tiles.k, g)
                for j in range(2):
                    at, total = m * PANEL + j * LANES, self.acc[m, j]
                    sums.put(at, form.add_group(sums.vec(at, LANES), total, headers[j], x_sum))
        return sums

    def _emit_steps(self, num_steps: int, x: Pointer, first: Pointer) -> None:
        """acc[m, j] += the products of `num_steps` steps of words from `first` on."""
        f, form, tiles = self.f, self.form, self.tiles
        # Where many parts follow a word, only one vector's words are in registers.
        is_plain = form.num_parts == 1 or isinstance(form, GroupedFormat)
        turns = [(0, 1)] if is_plain else [(0,), (1,)]
        listed = ListedInputs(self.panel, tiles.k) if isinstance(form, Bf12Format) else None
        at_once = 1 if listed else K_UNROLL
        with f.loop(0, num_steps, at_once) as s:
            for u in range(at_once):
                at, x_at = first.bytes((s + u) * tiles.step_bytes), (s + u) * form.x_step_bytes
                for vectors in turns:
                    if len(turns) > 1:
                        self.f.memory_mark()
                    loaded = {j: form.load_w(at.bytes(j * form.vector_bytes)) for j in vectors}
                    if 0 in vectors:
                        self._prefetch(at)
                    for part in range(form.num_parts):
                        parts = {j: form.part_of_w(words, part) for j, words in loaded.items()}
                        for j, value in parts.items() if tiles.keeps_words else ():
                            self._kept(s + u, part).put(j * LANES, value)
                        self._emit_part(x.bytes(x_at), parts, part)
            if listed:
                self._add_listed(listed, s, x.bytes(s * form.x_step_bytes))

    def _add_listed(self, listed: ListedInputs, step: Value, x: Pointer) -> None:
        """acc[m, j] += the products that the step's words left out: in their place of the chain."""
        with listed.of_step(step) as (output, pairs):
            for part, pair in enumerate(pairs):
                self.f.memory_mark()
                if self.tiles.keeps_words:
                    self._kept(step, part)[output.to(I64)] = pair
                self._emit_part(x, listed.vectors(output, pair), part)

    def _kept(self, step: Value, part: int) -> Pointer:
        """Where a part of a step's words is left for the tiles that follow."""
        return self.words.of(I32).at((step * self.form.num_parts + part) * PANEL)

    def _emit_part(self, x: Pointer, vectors: dict[int, Value], part: int) -> None:
        form, acc = self.form, self.acc
        ones = form.ones(self.f) if isinstance(form, GroupedFormat) else None
        for m in range(self.rows):
            broadcast = form.load_x(x.bytes(m * self.tiles.x_row_bytes), part)
            if ones is not None:
                acc["x", m] = form.dot(acc["x", m], ones, broadcast)
            for j, vector in vectors.items():
                acc[m, j] = form.dot(acc[m, j], vector, broadcast)

    def _prefetch(self, at: Pointer) -> None:
        """Ask for as many bytes of packed weights as a step stands for, and for its part ahead."""
        tiles = self.tiles
        if tiles.prefetch is Prefetch.NONE or isinstance(self.form, GroupedFormat):
            # Without a mark, LLVM moves loads across steps until sums no longer fit registers.
            self.f.memory_mark()
        if tiles.prefetch is Prefetch.NONE:
            return
        if tiles.prefetch is Prefetch.NEXT:
            self._fetch("next", tiles.packed_step_bytes)
        else:
            _ask_for(at.bytes(PREFETCH_BYTES), tiles.packed_step_bytes)
        if tiles.fetched_bytes:
            lines_bytes = round_up(tiles.fetched_bytes, tiles.all_steps * CACHE_LINE_BYTES)
            self._fetch("ahead", lines_bytes // tiles.all_steps)

    def _fetch(self, name: str, num_bytes: int) -> None:
        _ask_for((self.fetched[name] >> STEP_BITS).as_pointer(F32), num_bytes)
        self.fetched[name] = self.fetched[name] + self.strides[name]


def _ask_for(at: Pointer, num_bytes: int) -> None:
    """Prefetch whole lines, one at least, into the second cache."""
    for line in range(max(1, num_bytes // CACHE_LINE_BYTES)):
        at.prefetch(line * CACHE_LINE_BYTES, cache_level=2)
