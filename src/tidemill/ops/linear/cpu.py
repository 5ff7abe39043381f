"""Linear layers on the CPU: y[m, n] = sum_k x[m, k] w[n, k], with the epilogue fused.

Legend: M rows (a run-time number), N outputs in panels of 32, K inputs. Threads take contiguous
ranges of panels; a panel's weights are read once from memory and serve all row tiles. A register
tile is up to `isa.tile_rows` rows by 2 vectors. Each output has one accumulation chain over k, the
same for every M and every tile size, so a row's bits never depend on the rows beside it
(batch-invariant, deterministic). Accumulates in f32; cost is 2*M*N*K FLOPs and N*K weight bytes.
Measured: one chain loses nothing at M = 1, where memory is the limit (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES, Isa, V
from tidemill.codegen.kernel import Frame, Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, PTR
from tidemill.codegen.vector_math import silu
from tidemill.ops.cpu_elements import PairMath, store_f32
from tidemill.ops.layout import K_UNROLL, PANEL, activation_row, padded_k

PREFETCH_BYTES = 8192
FIELDS = ("rows", "x", "w", "bias", "y", "y_row_bytes", "panels")


Epilogue = Callable[["LinearKernels", Pointer, Value, list[Value]], None]


@dataclass(frozen=True)
class LinearKernels:
    """The linear layers of one input width: tiles shared by all epilogues."""

    module: Module
    isa: Isa
    weight: DType
    k: int

    @property
    def math(self) -> PairMath:
        return PairMath(self.isa, self.weight)

    @property
    def x_row_bytes(self) -> int:
        activation = self.math.activation
        return activation_row(self.k, activation) * activation.itemsize_bytes

    @property
    def k_steps(self) -> int:
        return padded_k(self.k, self.weight) // self.math.step

    @property
    def panel_bytes(self) -> int:
        return self.k_steps * 2 * self.math.vector_bytes

    def emit_tiles(self) -> dict[int, Function]:
        """Emit the register tiles of 1 .. tile_rows rows."""
        return {rows: self._emit_tile(rows) for rows in range(1, self.isa.tile_rows + 1)}

    def _emit_tile(self, rows: int) -> Function:
        """out[rows][32] = the products of `rows` rows of x with one panel."""
        name = f"tile_{self.weight.value}_k{self.k}_m{rows}"
        f = self.module.function(name, x=PTR, w=PTR, out=PTR)
        x, w, out = (arg.as_pointer(F32) for arg in f.args)
        math, acc = self.math, f.registers(V)
        tile = [(m, j) for m in range(rows) for j in range(2)]
        for key in tile:
            acc[key] = f.zero(V)
        with f.loop(0, self.k_steps, K_UNROLL) as s:
            for u in range(K_UNROLL):
                at = w.bytes((s + u) * (2 * math.vector_bytes))
                vectors = [math.load_w(at.bytes(j * math.vector_bytes)) for j in range(2)]
                at.prefetch(PREFETCH_BYTES)
                if math.vector_bytes >= 64:
                    at.prefetch(PREFETCH_BYTES + math.vector_bytes)
                for m in range(rows):
                    word = x.bytes((s + u) * 4).bytes(m * self.x_row_bytes)
                    broadcast = math.load_x(word)
                    for j in range(2):
                        acc[m, j] = math.dot(acc[m, j], vectors[j], broadcast)
        for m, j in tile:
            out.put(m * PANEL + j * LANES, acc[m, j])
        return f

    def emit(
        self, symbol: str, tiles: dict[int, Function], epilogue: Epilogue, has_bias: bool
    ) -> Kernel:
        """Emit the kernel of one epilogue: this thread's panels, times all row tiles."""
        kernel, frame = open_kernel(self.module, symbol, FIELDS)
        f, num_rows = frame.f, frame.count("rows")
        scratch = f.stack(F32, self.isa.tile_rows * PANEL)
        num_tiles = (num_rows + (self.isa.tile_rows - 1)) // self.isa.tile_rows
        first, last = frame.share(frame.integer("panels"))
        with f.when(num_rows > 0):
            rows_per_tile = (num_rows + num_tiles - 1) // num_tiles
            with f.loop(first, last) as panel, f.loop(0, num_tiles) as tile:
                start = tile * rows_per_tile
                rows = (num_rows - start).min(rows_per_tile)
                self._call_tile(frame, tiles, panel, start, rows, scratch)
                bias = self._bias(frame, panel) if has_bias else None
                with f.loop(0, rows) as m:
                    vectors = [scratch.vec(m * PANEL + j * LANES, LANES) for j in range(2)]
                    if bias:
                        vectors = [v + b for v, b in zip(vectors, bias, strict=True)]
                    y = frame.pointer("y", F32).bytes((start + m) * frame.integer("y_row_bytes"))
                    epilogue(self, y, panel, vectors)
        return kernel

    def _call_tile(
        self,
        frame: Frame,
        tiles: dict[int, Function],
        panel: Value,
        start: Value,
        rows: Value,
        scratch: Pointer,
    ) -> None:
        f = frame.f
        w = frame.pointer("w", F32).bytes(panel * self.panel_bytes)
        x = frame.pointer("x", F32).bytes(start * self.x_row_bytes)
        for tile_rows, function in tiles.items():
            with f.when(rows.eq(tile_rows)):
                f.call(function, x, w, scratch)

    def _bias(self, frame: Frame, panel: Value) -> list[Value]:
        bias = frame.pointer("bias", F32).at(panel * PANEL)
        return [bias.vec(j * LANES, LANES) for j in range(2)]


def store(kernels: LinearKernels, y: Pointer, panel: Value, vectors: list[Value]) -> None:
    """y = the products, in f32."""
    for j, value in enumerate(vectors):
        y.at(panel * PANEL).put(j * LANES, value)


def add_residual(kernels: LinearKernels, y: Pointer, panel: Value, vectors: list[Value]) -> None:
    """y += the products: the residual stream is updated in place."""
    at = y.at(panel * PANEL)
    for j, value in enumerate(vectors):
        at.put(j * LANES, at.vec(j * LANES, LANES) + value)


def gate_silu(kernels: LinearKernels, y: Pointer, panel: Value, vectors: list[Value]) -> None:
    """y = silu(first vector) * second: a panel holds 16 outputs of each branch."""
    activation = kernels.math.activation
    joined = silu(vectors[0]) * vectors[1]
    to = y.bytes(panel * (LANES * activation.itemsize_bytes))
    store_f32(kernels.isa, to, 0, joined, activation)


OP_TO_EPILOGUE: dict[str, Epilogue] = {
    "linear": store,
    "linear_residual": add_residual,
    "linear_gated": gate_silu,
}
