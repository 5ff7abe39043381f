"""Linear layers on the CPU: y[m, n] = sum_k x[m, k] w[n, k], with the epilogue fused.

Legend: M rows (a run-time number), N outputs in panels of 32, K inputs. Threads take contiguous
ranges of panels; a panel's weights are read once from memory and serve all row tiles. A register
tile is up to `isa.tile_rows` rows by 2 vectors. Each output has one accumulation chain over k, the
same for every M and every tile size, so a row's bits never depend on the rows beside it
(batch-invariant, deterministic). Accumulates in f32, or exactly in i32 where weights and
activations are q8; cost is 2*M*N*K FLOPs and N*K weight bytes. How words of each format multiply
is in `formats`.
Measured: one chain loses nothing at M = 1, where memory is the limit (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Registers, Value
from tidemill.codegen.isa import LANES, Isa
from tidemill.codegen.kernel import Frame, Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, PTR
from tidemill.codegen.vector_math import silu
from tidemill.ops.cpu_elements import store_f32
from tidemill.ops.layout import (
    K_UNROLL,
    PANEL,
    activation_row,
    group_bytes,
    k_step,
    padded_k,
    panel_bytes,
    panel_header_bytes,
    scale_at,
)
from tidemill.ops.linear.formats import Format
from tidemill.ops.linear.formats_q4 import Q4Format, Q4WidenedFormat

PREFETCH_BYTES = 8192
FIELDS = ("rows", "x", "w", "bias", "y", "y_row_bytes", "panels")


Epilogue = Callable[[Isa, Pointer, Value, list[Value]], None]


@dataclass(frozen=True)
class LinearKernels:
    """The linear layers of one input width: tiles shared by all epilogues."""

    module: Module
    isa: Isa
    format: Format
    k: int

    @property
    def x_row_bytes(self) -> int:
        activation = self.format.activation
        return activation_row(self.k, activation) * activation.itemsize_bytes

    @property
    def k_steps(self) -> int:
        weight = self.format.weight
        return padded_k(self.k, weight) // k_step(weight)

    def emit_tiles(self) -> dict[int, Function]:
        """Emit the register tiles of 1 .. tile_rows rows."""
        return {rows: self._emit_tile(rows) for rows in range(1, self.format.tile_rows + 1)}

    def _emit_tile(self, rows: int) -> Function:
        """out[rows][32] = the products of `rows` rows of x with one panel."""
        name = f"tile_{self.format.name}_k{self.k}_m{rows}"
        f = self.module.function(name, x=PTR, w=PTR, out=PTR)
        x, w, out = (arg.as_pointer(F32) for arg in f.args)
        if isinstance(self.format, Q4Format | Q4WidenedFormat):
            self._emit_groups(f, self.format, rows)
            return f
        form, acc = self.format, f.registers(self.format.sum_type)
        tile = [(m, j) for m in range(rows) for j in range(2)]
        for m, j in tile:
            acc[m, j] = form.start(w, j)
        first = w.bytes(panel_header_bytes(form.weight))
        self._emit_steps(acc, rows, self.k_steps, x, first)
        to = out.of(form.sum_type.scalar)
        for m, j in tile:
            to.put(m * PANEL + j * LANES, acc[m, j])
        return f

    def _emit_groups(self, f: Function, form: Q4Format | Q4WidenedFormat, rows: int) -> None:
        """The tile of a grouped format: each group's sums are scaled and added to out."""
        x, w, out = (arg.as_pointer(F32) for arg in f.args)
        acc, tile = f.registers(form.sum_type), [(m, j) for m in range(rows) for j in range(2)]
        size = form.weight.group_size
        for m, j in tile:
            out.put(m * PANEL + j * LANES, form.start(w, j))
        groups = w.bytes(panel_header_bytes(form.weight))
        with f.loop(0, self.k // size) as g:
            header = groups.bytes(g * group_bytes(form.weight))
            x_sums = [("x", m) for m in range(rows)] if form.sums_x else []
            for key in (*tile, *x_sums):
                acc[key] = f.zero(form.sum_type)
            x_at = x.bytes(g * (size // k_step(form.weight) * form.x_step_bytes))
            body = header.bytes(PANEL * form.weight.group_header_bytes)
            self._emit_steps(acc, rows, size // k_step(form.weight), x_at, body)
            for m in range(rows):
                summed = acc["x", m] if form.sums_x else None
                x_sum = form.sum_of_x(summed, x.bytes(m * self.x_row_bytes), self.k, g)
                for j in range(2):
                    at = m * PANEL + j * LANES
                    out.put(at, form.add_group(out.vec(at, LANES), acc[m, j], header, j, x_sum))

    def _emit_steps(
        self, acc: Registers, rows: int, num_steps: int, x: Pointer, first: Pointer
    ) -> None:
        """acc[m, j] += the products of `num_steps` words of w from `first` on."""
        f, form = acc.f, self.format
        with f.loop(0, num_steps, K_UNROLL) as s:
            for u in range(K_UNROLL):
                at = first.bytes((s + u) * (2 * form.vector_bytes))
                words = [form.load_w(at.bytes(j * form.vector_bytes)) for j in range(2)]
                at.prefetch(PREFETCH_BYTES)
                if form.vector_bytes >= 64:
                    at.prefetch(PREFETCH_BYTES + form.vector_bytes)
                for part in range(form.num_parts):
                    vectors = [form.part_of_w(word, part) for word in words]
                    for m in range(rows):
                        word = x.bytes((s + u) * form.x_step_bytes).bytes(m * self.x_row_bytes)
                        broadcast = form.load_x(word, part)
                        if isinstance(form, Q4WidenedFormat) and form.sums_x:
                            acc["x", m] = form.dot(acc["x", m], form.ones(f), broadcast)
                        for j in range(2):
                            acc[m, j] = form.dot(acc[m, j], vectors[j], broadcast)

    def emit(
        self, symbol: str, tiles: dict[int, Function], epilogue: Epilogue, has_bias: bool
    ) -> Kernel:
        """Emit the kernel of one epilogue: this thread's panels, times all row tiles."""
        kernel, frame = open_kernel(self.module, symbol, FIELDS)
        f, num_rows = frame.f, frame.count("rows")
        tile_rows = self.format.tile_rows
        scratch = f.stack(F32, tile_rows * PANEL)
        num_tiles = (num_rows + (tile_rows - 1)) // tile_rows
        first, last = frame.share(frame.integer("panels"))
        with f.when(num_rows > 0):
            rows_per_tile = (num_rows + num_tiles - 1) // num_tiles
            with f.loop(first, last) as panel, f.loop(0, num_tiles) as tile:
                start = tile * rows_per_tile
                rows = (num_rows - start).min(rows_per_tile)
                w = frame.pointer("w", F32).bytes(panel * panel_bytes(self.k, self.format.weight))
                x = frame.pointer("x", F32).bytes(start * self.x_row_bytes)
                for height, function in tiles.items():
                    with f.when(rows.eq(height)):
                        f.call(function, x, w, scratch)
                bias = self._bias(frame, panel) if has_bias else None
                with f.loop(0, rows) as m:
                    x_row = x.bytes(m * self.x_row_bytes)
                    vectors = [self._finish(scratch.at(m * PANEL), w, x_row, j) for j in range(2)]
                    if bias:
                        vectors = [v + b for v, b in zip(vectors, bias, strict=True)]
                    y = frame.pointer("y", F32).bytes((start + m) * frame.integer("y_row_bytes"))
                    epilogue(self.isa, y, panel, vectors)
        return kernel

    def _finish(self, sums: Pointer, w: Pointer, x_row: Pointer, j: int) -> Value:
        """Vector j of one row's products, from its raw sums."""
        form = self.format
        is_float = bool(form.weight.group_size)
        raw = sums.of(F32 if is_float else form.sum_type.scalar).vec(j * LANES, LANES)
        x_scale = x_row.bytes(scale_at(self.k)) if form.activation is DType.Q8 else None
        return form.finish(raw, w, j, x_scale)

    def _bias(self, frame: Frame, panel: Value) -> list[Value]:
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
