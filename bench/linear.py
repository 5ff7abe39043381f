"""Times single linear layers: each format, shape and number of rows against this machine's limits.

    scripts/bench linear [--formats bf16,q8_q8] [--shapes 576x1536,2048x5632] [--rows 1,8,32,512]

A shape is inputs x outputs. Checks the answer first, against NumPy in float64. Then the cases take
turns, round by round, each beside a plain read of memory and a loop of dot products on registers;
a case's limit is the longer of its weights at that read rate and its arithmetic at that dot rate
(int8 where both sides are, f32 where activations are, bf16 otherwise). Weights come from memory,
not from a cache. Prints one JSON line for each case: microseconds, operations and bytes a second,
and `roofline_share`, the median over the rounds of limit over time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import numpy as np

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line, spread
from tidemill.base.cpus import num_physical_cores
from tidemill.base.dtypes import DType
from tidemill.base.target import host_targets
from tidemill.builder.linear_timer import LinearShape, LinearTimer
from tidemill.builder.machine_limits import MachineLimits
from tidemill.builder.tactics import limit_s
from tidemill.codegen.isa import isa_for
from tidemill.ir.storage import widen
from tidemill.ops.linear.formats import format_for
from tidemill.ops.linear.tactics import default_table
from tidemill.ops.row import activation_dtype

FORMATS = ("bf16", "q8_bf16", "q8_q8", "f8_bf16", "q4g64_bf16", "q4g64_q8", "q4s64_q8")
# SmolLM2-135M's layers and those of a Llama of 1.1 billion, inputs x outputs.
SHAPES = ("576x960", "576x576", "576x3072", "1536x576", "2048x2560", "2048x11264", "5632x2048")
ROWS = (1, 4, 8, 14, 16, 32, 64, 128, 512)


def main() -> None:
    """Check, time in turns, print."""
    options = read_options()
    limits = MachineLimits(options.threads)
    for name in options.formats:
        weight, activation = read_format(name)
        for text in options.shapes:
            k, n = map(int, text.split("x"))
            if k % (weight.group_size or 1) == 0:
                measure(LinearShape(weight, activation, k, n), limits, options)
    limits.close()


def read_options() -> argparse.Namespace:
    def texts(value: str) -> list[str]:
        return value.split(",")

    def numbers(value: str) -> list[int]:
        return [int(each) for each in value.split(",")]

    parser = parser_of(__doc__)
    parser.add_argument("--formats", type=texts, default=FORMATS, help="weight, or weight_x")
    parser.add_argument("--shapes", type=texts, default=SHAPES, help="inputs x outputs")
    parser.add_argument("--rows", type=numbers, default=ROWS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=num_physical_cores())
    return parser.parse_args()


def read_format(name: str) -> tuple[DType, DType]:
    """Weight and activation types of a name such as q8_bf16; a plain weight has its own."""
    weight, _, activation = name.partition("_")
    own = DType(weight)
    return own, DType(activation) if activation else activation_dtype(own)


def measure(shape: LinearShape, limits: MachineLimits, options: argparse.Namespace) -> None:
    """Time one shape at every number of rows."""
    isa = isa_for(host_targets()[0])
    tables = [default_table(format_for(isa, shape.weight, shape.activation))]
    timer = LinearTimer(shape, isa, tables, max(options.rows), options.threads)
    check_answer(timer, options.rows)
    seconds: dict[int, list[float]] = {rows: [] for rows in options.rows}
    shares: dict[int, list[float]] = {rows: [] for rows in options.rows}
    for number in range(options.rounds + 1):
        for rows in options.rows:
            limit = limit_s(shape, rows, limits)
            timer.settle()
            took = timer.seconds(rows)
            if number:
                seconds[rows].append(took)
                shares[rows].append(limit / took)
    for rows in options.rows:
        report(shape, rows, seconds[rows], shares[rows], options.threads)
    timer.close()


def check_answer(timer: LinearTimer, rows: Sequence[int]) -> None:
    """Hold the products of the most and of a few rows against float64."""
    weight, x = timer.plain
    shape = timer.shape
    w_NK = widen(weight[:64], shape.weight).astype(np.float64)
    x_TK = widen(x, shape.activation).astype(np.float64)
    expected = x_TK @ w_NK.T
    for count in {min(rows), max(rows)}:
        found = timer.result(count)[:, :64]
        error = np.abs(found - expected[:count]).max() / expected.std()
        assert error < 1e-4, f"{shape.name}, {count} rows: off by {error:.1e}"


def report(
    shape: LinearShape, rows: int, seconds: list[float], shares: list[float], threads: int
) -> None:
    median = statistics.median(seconds)
    print_line(
        "linear", format=f"{shape.weight.value}_{shape.activation.value}", k=shape.k, n=shape.n,
        rows=rows, threads=threads, us=spread([each * 1e6 for each in seconds], 1),
        gop_s=round(shape.flops(rows) / median / 1e9, 1),
        read_gb_s=round(shape.weight_bytes / median / 1e9, 1),
        roofline_share=round(statistics.median(shares), 3),
    )  # fmt: skip


if __name__ == "__main__":
    main()
