"""Tactics of linear layers: whichever a table names, an output's bits are the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compare import assert_same_bits
from tests.ops.native_op import HOST_TARGETS
from tidemill.base.dtypes import DType
from tidemill.base.target import NAME_TO_TARGET
from tidemill.builder.linear_timer import LinearShape, LinearTimer
from tidemill.codegen.emitter import Pointer
from tidemill.codegen.isa import isa_for
from tidemill.codegen.types import I64
from tidemill.device.cpu import address_of
from tidemill.ops.layout import panel_bytes
from tidemill.ops.linear.formats import format_for
from tidemill.ops.linear.tactics import (
    Bucket,
    LinearTactic,
    Prefetch,
    default_table,
    tactics_of,
)

FORMATS = (
    (DType.BF16, DType.BF16),
    (DType.Q8, DType.Q8),
    (DType.Q8, DType.BF16),
    (DType.Q8, DType.F32),
    (DType.Q4G64, DType.Q8),
    (DType.Q4G64, DType.BF16),
    (DType.Q4S64, DType.BF16),
    (DType.F8, DType.BF16),
)
# One under and at a tile, a prime, several tiles.
ROWS = (1, 7, 14, 31)


# On the best target all formats, on the others two each; LLVM takes seconds for each.
CASES = [
    pytest.param(
        target,
        *types,
        marks=() if not number or turn // 2 == number - 1 else pytest.mark.sweep,
    )
    for number, target in enumerate(HOST_TARGETS)
    for turn, types in enumerate(FORMATS)
]


@pytest.mark.parametrize(("target", "weight", "activation"), CASES)
def test_all_tactics_of_a_format_give_the_same_bits(
    target: str, weight: DType, activation: DType
) -> None:
    isa = isa_for(NAME_TO_TARGET[target])
    tactics = (LinearTactic(3, Prefetch.NONE), *tactics_of(format_for(isa, weight, activation)))
    tables = [(Bucket(0, tactic),) for tactic in tactics]
    shape = LinearShape(weight, activation, k=192, n=96)
    timer = LinearTimer(shape, isa, tables, max(ROWS), num_threads=2, cold_bytes=0)
    for rows in ROWS:
        first = timer.result(rows)
        assert np.isfinite(first).all()
        for candidate, (bucket,) in enumerate(tables):
            what = f"{rows} rows with {bucket.tactic.name}"
            assert_same_bits(timer.result(rows, candidate), first, what)
    timer.close()


@pytest.mark.parametrize(("weight", "rows"), [(DType.BF16, 1030), (DType.Q8, 512)])
def test_tiles_prefetch_all_of_the_next_panel_between_them(
    weight: DType, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    line_to_mark = np.zeros(4096, np.int64)

    def mark(
        pointer: Pointer, offset_bytes: int, cache_level: int = 1, is_write: bool = False
    ) -> None:
        if cache_level == 1:
            return  # the panel's own words, as they are taken apart, and outputs
        f = pointer.f
        line = (pointer.to_address() + offset_bytes) >> 6
        marks = f.constant(address_of(line_to_mark), I64).as_pointer(I64)
        marks.put(line & (len(line_to_mark) - 1), f.constant(1, I64))

    monkeypatch.setattr(Pointer, "prefetch", mark)
    isa = isa_for(NAME_TO_TARGET[HOST_TARGETS[0]])
    shape = LinearShape(weight, DType.BF16, k=2048, n=32)
    tables = [(Bucket(0, LinearTactic(14, Prefetch.NEXT, weight is DType.Q8)),)]
    timer = LinearTimer(shape, isa, tables, rows, num_threads=1, cold_bytes=0)
    timer.result(rows)
    timer.close()
    assert line_to_mark.sum() >= 0.98 * panel_bytes(shape.k, weight) / 64


def test_rows_in_every_bucket_of_a_table_are_computed_once() -> None:
    table = (
        Bucket(1, LinearTactic(1, Prefetch.NONE)),
        Bucket(5, LinearTactic(2, Prefetch.STREAM)),
        Bucket(0, LinearTactic(14, Prefetch.NEXT)),
    )
    shape = LinearShape(DType.BF16, DType.BF16, k=64, n=33)
    isa = isa_for(NAME_TO_TARGET[HOST_TARGETS[0]])
    tables = [table, default_table(format_for(isa, shape.weight, shape.activation))]
    timer = LinearTimer(shape, isa, tables, 20, num_threads=2, cold_bytes=0)
    for rows in (1, 2, 5, 6, 20):
        assert_same_bits(timer.result(rows, 0), timer.result(rows, 1), f"{rows} rows")
    timer.close()
