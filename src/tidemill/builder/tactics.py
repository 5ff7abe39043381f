"""Chooses the tactics of linear layers: those that we ship, or the fastest measured here.

In: the lowered-to graph. Out: a table for each format and input width (layers of equal width share
their kernels, however many outputs they have), and a record of each choice for the manifest: for
every shape and bucket of rows the tactic, its cost, and where it was measured its time and share of
the roofline. Bits of answers do not depend on any of it.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.base.progress import Progress
from tidemill.builder.linear_timer import LinearShape, LinearTimer
from tidemill.builder.machine_limits import MachineLimits
from tidemill.codegen.isa import Isa
from tidemill.engine.manifest import Tactic
from tidemill.ir.graph import Graph, Op
from tidemill.ops.layout import LANES, round_up
from tidemill.ops.linear import LINEAR_KINDS
from tidemill.ops.linear.format_contract import Format
from tidemill.ops.linear.formats import format_for
from tidemill.ops.linear.tactics import (
    BUCKETS,
    Bucket,
    LinearTactic,
    TacticTable,
    default_table,
    tactic_for,
    tactics_of,
)

MOST_ROWS = 512  # measured for the bucket that has no limit
NUM_ROUNDS = 5
MARGIN = 1.02  # a tactic must be so much faster than the shipped one to replace it

Width = tuple[DType, DType, int]  # weight, activation, inputs: what shares a table


@dataclass(frozen=True)
class ChosenTactics:
    """A table for each width, and what the manifest says of them."""

    tables: Mapping[Width, TacticTable]
    records: tuple[Tactic, ...]


@dataclass(frozen=True)
class _Timing:
    """Medians of one shape, bucket and tactic."""

    seconds: float
    roofline_share: float


def shipped_tactics(graph: Graph, isa: Isa) -> ChosenTactics:
    """Take the tables that we ship."""
    shapes = linear_shapes(graph)
    tables = {_width(shape): default_table(_format(shape, isa)) for shape in shapes}
    return ChosenTactics(tables, tuple(_records(shapes, tables, {})))


def measure_tactics(
    graph: Graph, isa: Isa, num_threads: int, progress: Progress | None = None
) -> ChosenTactics:
    """Time every tactic of every shape on this machine, and take the fastest for each bucket.

    A width's shapes count as often as the graph has them. Takes some seconds for each shape.
    """
    shapes, limits = linear_shapes(graph), MachineLimits(num_threads)
    timings: dict[tuple[LinearShape, int, LinearTactic], _Timing] = {}
    for done, shape in enumerate(shapes):
        if progress:
            progress(f"tune {shape.name}", done, len(shapes))
        timings.update(_time_shape(shape, isa, limits, num_threads))
    limits.close()
    tables = {_width(shape): _fastest(shape, shapes, isa, timings) for shape in shapes}
    return ChosenTactics(tables, tuple(_records(shapes, tables, timings)))


def linear_shapes(graph: Graph) -> Counter[LinearShape]:
    """Count the graph's products by shape, in plan order."""
    return Counter(_shape(op) for op in graph.ops if op.kind in LINEAR_KINDS)


def _shape(op: Op) -> LinearShape:
    x, weight = op.inputs[0].type, op.inputs[1].type
    outputs, inputs = int(weight.shape[0]), int(weight.shape[1])
    outputs = 2 * round_up(outputs, LANES) if op.kind == "linear_gated" else outputs
    return LinearShape(weight.dtype, x.dtype, inputs, outputs)


def _width(shape: LinearShape) -> Width:
    return shape.weight, shape.activation, shape.k


def _format(shape: LinearShape, isa: Isa) -> Format:
    return format_for(isa, shape.weight, shape.activation)


def _time_shape(
    shape: LinearShape, isa: Isa, limits: MachineLimits, num_threads: int
) -> dict[tuple[LinearShape, int, LinearTactic], _Timing]:
    """Time a shape's tactics at the most rows of each bucket, in turns."""
    tactics = tactics_of(_format(shape, isa))
    timer = LinearTimer(shape, isa, [(Bucket(0, t),) for t in tactics], MOST_ROWS, num_threads)
    found = {}
    for bucket in BUCKETS:
        rows = bucket or MOST_ROWS
        seconds: dict[LinearTactic, list[float]] = {tactic: [] for tactic in tactics}
        bounds = []
        for _ in range(NUM_ROUNDS):
            bounds.append(limit_s(shape, rows, limits))
            timer.settle()
            for candidate, tactic in enumerate(tactics):
                seconds[tactic].append(timer.seconds(rows, candidate))
        for tactic, times in seconds.items():
            shares = (bound / time for bound, time in zip(bounds, times, strict=True))
            timing = _Timing(statistics.median(times), statistics.median(shares))
            found[shape, bucket, tactic] = timing
    timer.close()
    return found


def limit_s(shape: LinearShape, rows: int, limits: MachineLimits) -> float:
    """Seconds that this machine now needs to read the weights, or for the arithmetic if longer."""
    ops_per_s = limits.ops_per_s(shape.activation)
    return max(shape.weight_bytes / limits.read_bytes_per_s(), shape.flops(rows) / ops_per_s)


def _fastest(
    like: LinearShape,
    shapes: Counter[LinearShape],
    isa: Isa,
    timings: Mapping[tuple[LinearShape, int, LinearTactic], _Timing],
) -> TacticTable:
    """The tactics that take the shapes of one width together the least time."""
    mine = {shape: count for shape, count in shapes.items() if _width(shape) == _width(like)}
    tactics, default = tactics_of(_format(like, isa)), default_table(_format(like, isa))

    def total_s(bucket: int, tactic: LinearTactic) -> float:
        return sum(n * timings[shape, bucket, tactic].seconds for shape, n in mine.items())

    table = []
    for bucket in BUCKETS:
        shipped = tactic_for(default, bucket or MOST_ROWS)
        best = min(tactics, key=lambda tactic: total_s(bucket, tactic))
        is_better = total_s(bucket, best) * MARGIN < total_s(bucket, shipped)
        table.append(Bucket(bucket, best if is_better else shipped))
    return tuple(table)


def _records(
    shapes: Iterable[LinearShape],
    tables: Mapping[Width, TacticTable],
    timings: Mapping[tuple[LinearShape, int, LinearTactic], _Timing],
) -> Iterable[Tactic]:
    for shape in shapes:
        for bucket in BUCKETS:
            rows = bucket or MOST_ROWS
            tactic = tactic_for(tables[_width(shape)], rows)
            timing = timings.get((shape, bucket, tactic))
            yield Tactic(
                "linear", shape.name, tactic.name, "measured" if timing else "default",
                measured_us=round(timing.seconds * 1e6, 1) if timing else 0.0,
                max_rows=bucket, flops=shape.flops(rows), bytes=float(shape.weight_bytes),
                roofline_share=round(timing.roofline_share, 3) if timing else 0.0,
            )  # fmt: skip
