"""Native embedding, RMS norm and row gather against their references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.compare import TOLERANCES, assert_close, assert_same_bits
from tests.ops.judge import make_op, run, tensor
from tests.ops.native_op import (
    HOST_TARGETS,
    ROWS,
    THREADS,
    WEIGHT_DTYPES,
    Operands,
    activation_rows,
    count,
    draw_stored,
    empty_activations,
    run_native,
    wide_rows,
)
from tidemill.base.dtypes import DType
from tidemill.ir.storage import narrow, widen
from tidemill.ops.batch import Numerics
from tidemill.ops.expect import ACTIVATION_DTYPES, MATRIX_DTYPES
from tidemill.ops.layout import LANES, activation_row, round_up, wide_row
from tidemill.ops.row import activation_dtype
from tidemill.quant.packing import pack_panels, pad_vector, unpack_activations

EXACT = Numerics(np.float64)
# One, odd, a panel, one over a panel, a prime over three panels.
COLUMNS = (1, 15, 32, 33, 101)


@pytest.mark.parametrize("dtype", MATRIX_DTYPES)
@pytest.mark.parametrize("target", HOST_TARGETS)
def test_embedding_gathers_exact_rows_from_packed_panels(target: str, dtype: DType) -> None:
    whole = dtype.group_size or 1  # only whole groups are stored
    for columns in sorted({-(-columns // whole) * whole for columns in COLUMNS}):
        rng = np.random.default_rng(columns)
        table = draw_stored(rng, dtype, 101, columns)
        op = make_op("embedding", [tensor("i32", "T"), tensor(dtype.value, 101, columns)])
        for rows in ROWS:
            tokens = rng.integers(0, 101, max(rows, 1)).astype(np.int32)
            tokens[-1] = 100  # the last one: its panel is padded
            y = np.full((max(rows, 1), wide_row(columns)), np.nan, np.float32)
            record: Operands = {
                "rows": count(rows), "tokens": tokens, "y": y, "table": pack_panels(table, dtype),
            }  # fmt: skip
            run_native(target, [op], [record], num_threads=2)
            expected = wide_rows(run(op, tokens[:rows], widen(table, dtype)))
            assert_same_bits(y[:rows], expected[:rows].astype(np.float32), f"{rows}x{columns}")


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("target", HOST_TARGETS)
def test_rms_norm_equals_its_reference_and_keeps_padding_zero(target: str, dtype: DType) -> None:
    activation = activation_dtype(dtype)
    for columns in COLUMNS:
        rng = np.random.default_rng(columns)
        weight = draw_stored(rng, DType.F32, columns)
        types = [tensor("f32", "T", columns), tensor("f32", columns)]
        op = make_op("rms_norm", types, {"epsilon": 1e-5, "dtype": activation.value})
        for rows in ROWS:
            x = draw_stored(rng, DType.F32, rows, columns) * np.float32(3e-3)
            y = empty_activations(rows, columns, activation)
            record: Operands = {
                "rows": count(rows),
                "x": wide_rows(x),
                "weight": pad_vector(weight),
                "y": y,
            }
            for num_threads in THREADS:
                run_native(target, [op], [record], num_threads=num_threads)
                expected = run(op, x, weight, numerics=EXACT)
                got = widen(y[:rows, :columns], activation)
                assert_close(got, expected, TOLERANCES["rms_norm", dtype], f"{rows}x{columns}")
                assert not y[:, columns:].any()


@pytest.mark.parametrize("activation", (DType.F32, DType.BF16))
@pytest.mark.parametrize("target", HOST_TARGETS)
def test_quantize_gives_the_levels_and_scales_of_its_reference(
    target: str, activation: DType
) -> None:
    for columns in COLUMNS:
        rng = np.random.default_rng(columns)
        op = make_op("quantize", [tensor(activation.value, "T", columns)])
        for rows in ROWS:
            x = draw_stored(rng, activation, rows, columns)
            x[1:2] = 0  # a row of zeros
            packed = empty_activations(rows, columns, activation)
            packed[:rows, :columns] = x
            # Behind the last whole vector, the buffer's former owner left its numbers.
            packed[:, round_up(columns, LANES) :] = 0x7F7F
            y = np.zeros((max(rows, 1), activation_row(columns, DType.Q8)), np.uint8)
            record: Operands = {"rows": count(rows), "x": packed, "y": y}
            for num_threads in THREADS:
                run_native(target, [op], [record], num_threads=num_threads)
                got = unpack_activations(y[:rows], columns, DType.Q8)
                expected = narrow(widen(x, activation), DType.Q8)
                assert_same_bits(got, expected, f"{rows}x{columns}")


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_rms_norm_quantizes_what_it_normalises(target: str) -> None:
    for columns in COLUMNS:
        rng = np.random.default_rng(columns)
        weight = draw_stored(rng, DType.F32, columns)
        types = [tensor("f32", "T", columns), tensor("f32", columns)]
        op = make_op("rms_norm", types, {"epsilon": 1e-5, "dtype": "q8"})
        for rows in ROWS:
            x = draw_stored(rng, DType.F32, rows, columns)
            y = np.zeros((max(rows, 1), activation_row(columns, DType.Q8)), np.uint8)
            record: Operands = {
                "rows": count(rows),
                "x": wide_rows(x),
                "weight": pad_vector(weight),
                "y": y,
            }
            run_native(target, [op], [record], num_threads=2)
            stored = unpack_activations(y[:rows], columns, DType.Q8)
            exact = run(op, x, weight, numerics=EXACT)
            step = np.abs(exact).max(axis=1, initial=0.0, keepdims=True) / 127
            # Half a step, and what float32 loses before a level is chosen.
            assert (np.abs(widen(stored, DType.Q8) - exact) <= 0.501 * step + 1e-6).all()


@pytest.mark.parametrize("target", HOST_TARGETS)
def test_gather_last_copies_the_rows_asked_for(target: str) -> None:
    for columns, dtype in itertools.product(COLUMNS, ACTIVATION_DTYPES):
        rng = np.random.default_rng(columns)
        x = activation_rows(draw_stored(rng, dtype, 29, columns), dtype)
        op = make_op("gather_last", [tensor(dtype.value, "T", columns), tensor("i32", "L")])
        for rows in ROWS:
            indices = rng.integers(0, 29, max(rows, 1)).astype(np.int32)
            y = np.ones((max(rows, 1), x.shape[1]), x.dtype)
            record: Operands = {
                "rows": count(rows),
                "x": x,
                "indices": indices,
                "y": y,
                "row_bytes": x.strides[0],
            }
            run_native(target, [op], [record], num_threads=2)
            assert_same_bits(y[:rows], x[indices[:rows]])
