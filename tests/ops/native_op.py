"""Runs native kernels one by one: a few ops are compiled for a target and called by a team.

In: ops with typed operands (tests/ops/judge.py) and, for each, its record's operands by name:
arrays in the kernels' layouts, or numbers. Arrays that kernels write are changed in place. Code is
compiled once for each (ops, target, block size) of a test session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tests.runnable_targets import TARGETS
from tidemill.base import abi
from tidemill.base.dtypes import DType
from tidemill.base.target import host_targets
from tidemill.builder.build_config import BuildConfig
from tidemill.builder.cpu_kernels import KernelLibrary
from tidemill.codegen.compile import compile_module
from tidemill.codegen.isa import isa_for
from tidemill.codegen.kernel import Kernel
from tidemill.device.cpu import LoadedCode, Team, address_of
from tidemill.ir.graph import Op
from tidemill.ir.storage import Array, narrow
from tidemill.ir.text import print_op
from tidemill.ops.layout import activation_row, wide_row

HOST_TARGETS = tuple(target.name for target in host_targets())
WEIGHT_DTYPES = (DType.BF16, DType.F16, DType.F32)
THREADS = (1, 2)
ROWS = (0, 1, 2, 13, 14, 15, 29)

Operands = Mapping[str, Array | int]

_compiled: dict[tuple[str, str, int], tuple[LoadedCode, list[Kernel]]] = {}


def run_native(
    target: str,
    ops: Sequence[Op],
    operands: Sequence[Operands],
    *,
    num_threads: int = 1,
    tokens_per_block: int = 32,
    copies: Sequence[tuple[int, int]] = (),
) -> None:
    """Run the ops' kernels once, in order, as one step of a team.

    `copies` are, for each op, how many rows there is room for in what it makes and what it reads.
    """
    code, kernels = _compile(target, ops, tokens_per_block)
    records = np.zeros((len(ops), abi.RECORD_WORDS), np.int64)
    for record, kernel, named in zip(records, kernels, operands, strict=True):
        record[0] = code.address(kernel.symbol)
        record[1 : 1 + len(kernel.fields)] = list(map(_word, kernel.in_order(named)))
    for record, (made, read) in zip(records, copies, strict=False):
        record[abi.RECORD_MADE_COPIES], record[abi.RECORD_READ_COPIES] = made, read
    team = Team(code, records, num_threads)
    team.step()
    team.close()


def _word(operand: Array | int) -> int:
    if isinstance(operand, int):
        return operand
    assert operand.flags.c_contiguous
    return address_of(operand)


def _compile(
    target: str, ops: Sequence[Op], tokens_per_block: int
) -> tuple[LoadedCode, list[Kernel]]:
    key = (target, "\n".join(f"{print_op(op)} {op.inputs}" for op in ops), tokens_per_block)
    if key not in _compiled:
        isa = isa_for(TARGETS[target])
        library = KernelLibrary(isa, BuildConfig(1, 1, 1, 1, 1, tokens_per_block))
        kernels = [library.kernel(op) for op in ops]
        image = compile_module(library.module, isa)
        _compiled[key] = LoadedCode(image.data, image.entry_offsets), kernels
    return _compiled[key]


def count(number: int) -> npt.NDArray[np.int64]:
    """A run-time count, as kernels read it from the step header."""
    return np.array([number], np.int64)


def wide_rows(values: Array) -> npt.NDArray[np.float32]:
    """Rows of f32 in the residual stream's layout, padded with zeros; never without memory."""
    rows, columns = values.shape
    padded = np.zeros((max(rows, 1), wide_row(columns)), np.float32)
    padded[:rows, :columns] = values
    return padded


def activation_rows(stored: Array, dtype: DType) -> Array:
    """Rows of activations in storage type, padded with zeros; never without memory."""
    rows, columns = stored.shape
    padded = np.zeros((max(rows, 1), activation_row(columns, dtype)), dtype.storage_name)
    padded[:rows, :columns] = stored
    return padded


def empty_activations(rows: int, columns: int, dtype: DType) -> Array:
    """Zeroed rows for a kernel to write."""
    return activation_rows(np.zeros((rows, columns), dtype.storage_name), dtype)


def draw_stored(rng: np.random.Generator, dtype: DType, *shape: int) -> Array:
    """Random normal values in storage type; of bf12 some that do not fit, or are zero."""
    values = rng.standard_normal(shape).astype(np.float32)
    if dtype is DType.BF12:
        values.flat[rng.integers(values.size, size=4)] = (0, 1e-9, -3e4, 0)
    return narrow(values, dtype)
