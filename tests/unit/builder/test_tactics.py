"""Tactics of an engine: shipped or measured, each shape's choice is on record."""

from __future__ import annotations

import pytest

from tests.ops.judge import make_op, tensor
from tidemill.api.step_limits import Rates, op_limit, step_sizes
from tidemill.base.dtypes import DType
from tidemill.base.target import host_targets
from tidemill.builder import linear_timer, tactics
from tidemill.builder.machine_limits import MachineLimits
from tidemill.codegen.isa import isa_for
from tidemill.ir.graph import AttrValue, Graph
from tidemill.ops.linear.formats import format_for
from tidemill.ops.linear.tactics import BUCKETS, default_table, tactic_for, tactics_of

ISA = isa_for(host_targets()[0])
FORM = format_for(ISA, DType.BF16, DType.BF16)
WIDTH = (DType.BF16, DType.BF16, 64)


def make_graph() -> Graph:
    """Two layers of one width, of which one has a gate."""
    x, weight = tensor("bf16", "T", 64), tensor("bf16", 96, 64)
    gate: dict[str, AttrValue] = {"activation": "silu", "dtype": "bf16"}
    ops = (
        make_op("linear", [x, weight]),
        make_op("linear", [x, weight]),
        make_op("linear_gated", [x, tensor("bf16", 72, 64), tensor("bf16", 72, 64)], gate),
    )
    return Graph("g", (), (), ops, ())


def test_shipped_tactics_are_recorded_for_every_shape_and_bucket() -> None:
    chosen = tactics.shipped_tactics(make_graph(), ISA)
    assert chosen.tables == {WIDTH: default_table(FORM)}
    assert len(chosen.records) == 2 * len(BUCKETS)
    first = chosen.records[0]
    assert (first.shape, first.max_rows, first.chosen_by) == ("bf16_bf16 96x64", 1, "default")
    assert first.flops == 2 * 96 * 64 and first.bytes == 96 * 64 * 2 and not first.measured_us
    assert chosen.records[-1].shape == "bf16_bf16 160x64"  # 72 of each branch, padded to 80


def test_measured_tactics_say_what_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_timer, "COLD_BYTES", 0)
    monkeypatch.setattr(tactics, "NUM_ROUNDS", 1)
    monkeypatch.setattr(tactics, "BUCKETS", (4, 0))
    monkeypatch.setattr(tactics, "MOST_ROWS", 16)
    chosen = tactics.measure_tactics(make_graph(), ISA, num_threads=2)
    table = chosen.tables[WIDTH]
    assert [bucket.max_rows for bucket in table] == [4, 0]
    for record in chosen.records:
        tactic = tactic_for(table, record.max_rows or 16)
        assert tactic in tactics_of(FORM)
        assert record.choice == tactic.name and record.chosen_by == "measured"
        assert record.measured_us > 0 and record.roofline_share > 0


class FixedLimits(MachineLimits):
    """A machine whose rates are given: memory without end, arithmetic by type."""

    def __init__(self) -> None:
        pass

    def read_bytes_per_s(self) -> float:
        return 1e30

    def ops_per_s(self, activation: DType) -> float:
        return {DType.BF16: 4e9, DType.Q8: 8e9, DType.F32: 2e9}[activation]


@pytest.mark.parametrize(
    ("weight", "activation", "rate"),
    [("bf16", "bf16", 4e9), ("q8", "q8", 8e9), ("q8", "bf16", 4e9), ("f16", "f32", 2e9)],
)
def test_a_product_is_held_against_the_arithmetic_that_it_uses(
    weight: str, activation: str, rate: float
) -> None:
    shape = linear_timer.LinearShape(DType(weight), DType(activation), k=64, n=96)
    assert tactics.limit_s(shape, 7, FixedLimits()) == shape.flops(7) / rate
    op = make_op("linear", [tensor(activation, "T", 64), tensor(weight, 96, 64)])
    rates = Rates.measure(FixedLimits())
    assert op_limit(op, step_sizes(7, 0, 1), rates).dot_s == shape.flops(7) / rate
