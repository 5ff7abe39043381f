"""Native linear layers of every form, target, type and thread count against float64 references."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

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
    count,
    draw_stored,
    empty_activations,
    run_native,
    wide_rows,
)
from tests.runnable_targets import TARGETS
from tidemill.base.dtypes import DType
from tidemill.base.target import X86_64_V3, X86_64_V3_VNNI
from tidemill.ir.graph import Op
from tidemill.ir.storage import Array, widen
from tidemill.ops.batch import Numerics
from tidemill.ops.layout import LANES, PANEL, padded_n, round_up
from tidemill.ops.linear.cpu import NEXT_FIELDS
from tidemill.ops.linear.prepared import prepared_bytes
from tidemill.ops.row import activation_dtype
from tidemill.quant.packing import interleave_gate, pack_activations, pack_panels, pad_vector

EXACT = Numerics(np.float64)
NOTHING_FOLLOWS = dict.fromkeys(NEXT_FIELDS, 0)
VNNI = X86_64_V3_VNNI.name
# A multiple of each group size, and one more panel than whole.
SIZE_TO_SHAPE = {32: (96, 33), 64: (128, 96), 128: (256, 1)}
# (inputs, outputs): odd, one over a panel, exact multiples, a single output, a prime.
SHAPES = ((37, 33), (64, 96), (101, 1))
FORMATS = [(dtype, activation_dtype(dtype)) for dtype in WEIGHT_DTYPES]
FORMATS += [(DType.BF12, DType.BF16)]
FORMATS += [(DType.Q8, activation) for activation in (DType.Q8, DType.BF16, DType.F32)]
FORMATS += [(DType.F8, activation) for activation in (DType.BF16, DType.F32)]
FORMATS += [(dtype, DType.Q8) for dtype in DType if dtype.group_size]
FORMATS += [
    (dtype, activation)
    for dtype in (DType.Q4G64, DType.Q4S64)
    for activation in (DType.BF16, DType.F32)
]
# Kinds of layers, each without and with a bias.
Kinds = tuple[tuple[str, bool], ...]
ALL_KINDS: Kinds = tuple(
    (kind, has_bias)
    for has_bias in (False, True)
    for kind in ("linear", "linear_residual", "linear_gated")
)


def linear_cases() -> list[Any]:
    """Every target, format and shape, with the kinds whose code is compiled for it.

    By default every kind on the best target, with a bias or without in turn; on the others, and
    for further shapes, one kind in turn. All kinds for each are a sweep.
    """
    cases, sweep = [], pytest.mark.sweep
    for turn, (target, formats) in enumerate(itertools.product(HOST_TARGETS, FORMATS)):
        is_best = target == HOST_TARGETS[0]
        for number, shape in enumerate(shapes_of(formats[0])):
            name = "-".join((target, *(dtype.value for dtype in formats), "{}x{}".format(*shape)))
            some: Kinds = (ALL_KINDS[(turn + number) % 6],)
            if is_best and not number:
                some = tuple(ALL_KINDS[kind + 3 * ((kind + turn) % 2)] for kind in range(3))
            if is_best or not number:
                cases.append(pytest.param(target, formats, shape, some, id=name))
            all_of_it = (target, formats, shape, ALL_KINDS)
            cases.append(pytest.param(*all_of_it, id=f"{name}-all", marks=sweep))
    return cases


def shapes_of(weight: DType) -> tuple[tuple[int, int], ...]:
    return (SIZE_TO_SHAPE[weight.group_size],) if weight.group_size else SHAPES


LINEAR_CASES = linear_cases()


@dataclass(frozen=True)
class Case:
    """One op with its plain operands, its record, and where its result lies."""

    op: Op
    plain: list[Array]
    record: dict[str, Array | int]
    is_activation: bool

    def expected(self) -> Array:
        floats = [widen(a, v.type.dtype) for a, v in zip(self.plain, self.op.inputs, strict=True)]
        return run(self.op, *(each.astype(np.float64) for each in floats), numerics=EXACT)

    @property
    def tolerance(self) -> DType:
        """The type whose row of the table applies: a bf16 result is rounded like bf16 weights'."""
        rounded = self.op.outputs[0].type.dtype is DType.BF16
        return DType.BF16 if rounded else self.op.inputs[1].type.dtype

    def result(self) -> Array:
        out = self.op.outputs[0].type
        rows, columns = len(self.plain[0]), int(out.shape[1])
        y = self.record["y"]
        assert isinstance(y, np.ndarray)
        return widen(y[:rows, :columns], out.dtype)


def draw_cases(
    formats: tuple[DType, DType],
    rows: int,
    shape: tuple[int, int],
    seed: int,
    kinds: Kinds = ALL_KINDS,
) -> list[Case]:
    """Draw a layer of each of the kinds; operands are the same, whichever kinds they are."""
    print(f"seed {seed}")
    k, n = shape
    rng, (dtype, activation) = np.random.default_rng(seed), formats
    joined_dtype = DType.BF16 if activation is DType.Q8 else activation
    x = draw_stored(rng, activation, rows, k)
    weight, gate = (draw_stored(rng, dtype, n, k) for _ in range(2))
    bias, gate_bias = (draw_stored(rng, DType.F32, n) for _ in range(2))
    residual = draw_stored(rng, DType.F32, rows, n)
    x_type, w_type = tensor(activation.value, "T", k), tensor(dtype.value, n, k)
    bias_type, residual_type = tensor("f32", n), tensor("f32", "T", n)
    packed_x = never_empty(pack_activations(x, activation))
    cases = []
    for has_bias in (False, True):
        biases, bias_types = [bias] * has_bias, [bias_type] * has_bias
        common: dict[str, Array | int] = {
            "rows": count(rows), "x": packed_x, "w": pack_panels(weight, dtype),
            "bias": pad_vector(bias) if has_bias else 0, "panels": padded_n(n) // PANEL,
            "y_row_bytes": padded_n(n) * 4, **scratch(k, dtype), **NOTHING_FOLLOWS,
        }  # fmt: skip
        plain = make_op("linear", [x_type, w_type, *bias_types])
        nothing = wide_rows(np.zeros((rows, n), np.float32))
        drawn = [Case(plain, [x, weight, *biases], {**common, "y": nothing}, False)]
        types = [x_type, w_type, *bias_types, residual_type]
        added = make_op("linear_residual", types)
        y = wide_rows(residual)
        drawn.append(Case(added, [x, weight, *biases, residual], {**common, "y": y}, False))
        types = [x_type, w_type, w_type, *bias_types * 2]
        gated = make_op(
            "linear_gated",
            types,
            {"activation": "silu", "dtype": joined_dtype.value},
        )
        out = empty_activations(rows, n, joined_dtype)
        joined = interleave_gate(bias, gate_bias)
        record = {
            **common, "w": pack_panels(interleave_gate(weight, gate), dtype), "y": out,
            "bias": pad_vector(joined) if has_bias else 0, "y_row_bytes": out.strides[0],
            "panels": 2 * round_up(n, LANES) // PANEL,
        }  # fmt: skip
        operands = [x, weight, gate, *[bias, gate_bias] * has_bias]
        drawn.append(Case(gated, operands, record, True))
        cases += [case for case in drawn if (case.op.kind, has_bias) in kinds]
    return cases


def scratch(k: int, dtype: DType) -> dict[str, Array | int]:
    """What a coded layer's record has besides: memory for each of two threads."""
    if not dtype.is_coded:
        return {}
    size = prepared_bytes(k, dtype)
    return {"scratch": np.zeros(2 * size, np.uint8), "scratch_bytes": size}


def never_empty(rows: Array) -> Array:
    return rows if len(rows) else np.zeros((1, rows.shape[1]), rows.dtype)


def run_cases(target: str, cases: list[Case], num_threads: int) -> None:
    records: list[Operands] = [case.record for case in cases]
    run_native(target, [case.op for case in cases], records, num_threads=num_threads)


@pytest.mark.parametrize(("target", "formats", "shape", "kinds"), LINEAR_CASES)
def test_linear_layers_equal_their_references_for_any_number_of_rows(
    target: str, formats: tuple[DType, DType], shape: tuple[int, int], kinds: Kinds
) -> None:
    for rows in ROWS:
        for num_threads in THREADS:
            cases = draw_cases(formats, rows, shape, rows + shape[0], kinds)
            expected = [case.expected() for case in cases]
            run_cases(target, cases, num_threads)
            for case, reference in zip(cases, expected, strict=True):
                what = f"{case.op.kind}, {rows} rows, {num_threads} threads"
                assert_close(
                    case.result(), reference, TOLERANCES[case.op.kind, case.tolerance], what
                )


@pytest.mark.parametrize(("target", "formats", "shape", "kinds"), LINEAR_CASES)
def test_a_row_of_a_linear_layer_has_the_same_bits_in_any_crowd(
    target: str, formats: tuple[DType, DType], shape: tuple[int, int], kinds: Kinds
) -> None:
    crowd = draw_cases(formats, 29, shape, 3, kinds)
    run_cases(target, crowd, 2)
    for first, last in ((0, 1), (28, 29), (5, 19), (7, 9)):
        part = draw_cases(formats, 29, shape, 3, kinds)
        for case in part:
            case.record["rows"] = count(last - first)
            for name in ("x", "y"):
                whole = case.record[name]
                assert isinstance(whole, np.ndarray)
                case.record[name] = np.ascontiguousarray(whole[first:last])
        run_cases(target, part, 1)
        for alone, among in zip(part, crowd, strict=True):
            y, all_y = alone.record["y"], among.record["y"]
            assert isinstance(y, np.ndarray) and isinstance(all_y, np.ndarray)
            assert_same_bits(y, all_y[first:last], among.op.kind)


@pytest.mark.skipif(VNNI not in TARGETS, reason="needs a CPU with a byte dot product")
@pytest.mark.parametrize("weight", [DType.Q8, DType.Q4G64, DType.Q4S64])
def test_avx2_gives_the_same_bits_with_its_dot_product_and_without(weight: DType) -> None:
    shape = shapes_of(weight)[0]
    with_dots, without = (draw_cases((weight, DType.Q8), 5, shape, seed=7) for _ in range(2))
    run_cases(VNNI, with_dots, 1)
    run_cases(X86_64_V3.name, without, 1)
    for one, other in zip(with_dots, without, strict=True):
        assert_same_bits(one.result(), other.result(), one.op.kind)
