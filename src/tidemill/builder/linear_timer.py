"""Times one linear layer in each of its candidate forms, through the code that engines run.

In: the shape, the candidates' tactics, a number of threads. Out: seconds of one product for any
number of rows, and the product itself, so that whoever times can judge it. The packed weight is
repeated over more memory than the caches hold and every call takes the next copy, so that it comes
from memory as in an engine; many rows take few copies, as arithmetic rules there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidemill.base import abi
from tidemill.base.dtypes import DType
from tidemill.builder.machine_limits import SETTLE_S
from tidemill.codegen.compile import compile_module
from tidemill.codegen.isa import Isa
from tidemill.codegen.kernel import Kernel
from tidemill.codegen.module import Module
from tidemill.codegen.spmd import emit_team
from tidemill.device.cpu import LoadedCode, MeasuringTeam, address_of, allocate
from tidemill.ir.storage import Array, narrow
from tidemill.ops.layout import PANEL, padded_n, panel_bytes, wide_row
from tidemill.ops.linear.cpu import LinearKernel
from tidemill.ops.linear.epilogue import store
from tidemill.ops.linear.formats import format_for
from tidemill.ops.linear.prepared import prepared_bytes
from tidemill.ops.linear.tactics import TacticTable
from tidemill.quant.packing import pack_activations, pack_panels

COLD_BYTES = 128 << 20
MOST_COPIES = 1024
_FLOPS_A_CALL = 4e9  # beyond it a call is long enough to be timed whatever the number of copies


@dataclass(frozen=True)
class LinearShape:
    """A weight matrix [n, k] and the activations that it meets."""

    weight: DType
    activation: DType
    k: int
    n: int

    @property
    def name(self) -> str:
        return f"{self.weight.value}_{self.activation.value} {self.n}x{self.k}"

    def flops(self, rows: int) -> float:
        return 2.0 * rows * self.n * self.k

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrix, scales included."""
        return self.n * self.weight.row_bytes(self.k)


class LinearTimer:
    """One shape's kernels, compiled and fed; `close` ends their threads."""

    def __init__(
        self,
        shape: LinearShape,
        isa: Isa,
        tables: Sequence[TacticTable],
        max_rows: int,
        num_threads: int,
        cold_bytes: int = COLD_BYTES,
    ) -> None:
        self.shape, self._num_rows = shape, np.ones(1, np.int64)
        rng = np.random.default_rng(1)
        weight = narrow(rng.standard_normal((shape.n, shape.k), np.float32), shape.weight)
        x = narrow(rng.standard_normal((max_rows, shape.k), np.float32), shape.activation)
        self.plain = weight, x
        self._x, packed = pack_activations(x, shape.activation), pack_panels(weight, shape.weight)
        self._y = np.zeros((max_rows, wide_row(shape.n)), np.float32)
        self._weights = _repeat(packed, cold_bytes)
        scratch_bytes = prepared_bytes(shape.k, shape.weight)
        self._scratch = allocate(num_threads * scratch_bytes)
        code, kernels = _compile(shape, isa, tables)
        num_panels = padded_n(shape.n) // PANEL
        copies = np.array([address_of(copy) for copy in self._weights])
        operands: dict[str, int | Array] = {
            "rows": address_of(self._num_rows), "x": address_of(self._x), "w": copies, "bias": 0,
            "y": address_of(self._y), "y_row_bytes": self._y.strides[0], "panels": num_panels,
            "next_w": np.roll(copies, -1), "next_panels": num_panels,
            "next_panel_bytes": panel_bytes(shape.k, shape.weight),
        }  # fmt: skip
        if shape.weight.is_coded:
            operands |= {"scratch": address_of(self._scratch), "scratch_bytes": scratch_bytes}
        records = np.zeros((len(kernels), len(copies), abi.RECORD_WORDS), np.int64)
        for of_candidate, kernel in zip(records, kernels, strict=True):
            of_candidate[:, 0] = code.address(kernel.symbol)
            for word, operand in enumerate(kernel.in_order(operands), 1):
                of_candidate[:, word] = operand
        self._team = MeasuringTeam(code, records.reshape(-1, abi.RECORD_WORDS), num_threads)

    def settle(self) -> None:
        """Wait until another team's threads have stopped spinning, and wake our own."""
        time.sleep(SETTLE_S)
        self.seconds(1)

    def seconds(self, rows: int, candidate: int = 0) -> float:
        """Seconds of one product, from a call that makes many."""
        num_copies = len(self._weights)
        calls = int(min(num_copies, max(2.0, _FLOPS_A_CALL / self.shape.flops(rows))))
        self._num_rows[0] = rows
        self._team.select(candidate * num_copies, calls)
        start = time.perf_counter()
        self._team.step()
        return (time.perf_counter() - start) / calls

    def result(self, rows: int, candidate: int = 0) -> npt.NDArray[np.float32]:
        """Compute one product; shape (rows, n)."""
        self._y[:] = np.nan
        self._num_rows[0] = rows
        self._team.select(candidate * len(self._weights), 1)
        self._team.step()
        return self._y[:rows, : self.shape.n].copy()

    def close(self) -> None:
        self._team.close()


def _repeat(packed: Array, cold_bytes: int) -> list[npt.NDArray[np.uint8]]:
    """Copies of a packed weight, one behind the other, at cache lines."""
    data = np.ascontiguousarray(packed).reshape(-1).view(np.uint8)
    stride = -(-len(data) // 64) * 64
    count = min(MOST_COPIES, max(2, cold_bytes // stride))
    memory = allocate(count * stride).reshape(count, stride)
    memory[:, : len(data)] = data
    return list(memory)


def _compile(
    shape: LinearShape, isa: Isa, tables: Sequence[TacticTable]
) -> tuple[LoadedCode, list[Kernel]]:
    module = Module()
    emit_team(module, isa)
    layer = LinearKernel(module, format_for(isa, shape.weight, shape.activation), shape.k, store())
    kernels = [layer.emit(f"candidate{i}", table) for i, table in enumerate(tables)]
    image = compile_module(module, isa)
    return LoadedCode(image.data, image.entry_offsets), kernels
