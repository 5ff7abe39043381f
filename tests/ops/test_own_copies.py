"""Few rows are made by each thread for itself, and lie where its next layer reads them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compare import assert_same_bits
from tests.ops.judge import make_op, tensor
from tests.ops.native_op import (
    HOST_TARGETS,
    Operands,
    activation_rows,
    count,
    draw_stored,
    run_native,
    wide_rows,
)
from tests.ops.test_cpu_linear import NOTHING_FOLLOWS
from tidemill.base.abi import MOST_COPIED_ROWS
from tidemill.base.dtypes import DType
from tidemill.ir.storage import Array
from tidemill.ops.layout import PANEL, padded_n
from tidemill.ops.linear.prepared import prepared_bytes
from tidemill.quant.packing import pack_panels, pad_vector

K, N = 96, 70
ROOM = 13  # rows of the buffer: four of three threads fit, five do not
THREADS = (1, 2, 3, 5)
MARK = 0x55


class NormAndLayer:
    """A norm, quantising or not, whose rows a linear layer multiplies."""

    def __init__(self, weight: DType, rows: int) -> None:
        rng, self.rows = np.random.default_rng(rows), rows
        activation = DType.Q8 if weight is DType.Q8 else DType.BF16
        types = [tensor("f32", "T", K), tensor("f32", K)]
        norm = make_op("rms_norm", types, {"epsilon": 1e-5, "dtype": activation.value})
        layer = make_op("linear", [tensor(activation.value, "T", K), tensor(weight.value, N, K)])
        self.ops = [norm, layer]
        self.x, self.scale = draw_stored(rng, DType.F32, rows, K), draw_stored(rng, DType.F32, K)
        self.w = pack_panels(draw_stored(rng, weight, N, K), weight)
        size = prepared_bytes(K, weight)
        of_threads: dict[str, Array | int] = {
            "scratch": np.zeros(max(THREADS) * size, np.uint8),
            "scratch_bytes": size,
        }
        self.scratch = of_threads if weight.is_coded else {}
        nothing = np.zeros((ROOM, K), activation.storage_name)
        self.between = activation_rows(nothing, activation)

    def run(self, num_threads: int, room: int) -> Array:
        """The layer's outputs, where the norm's buffer is said to have room for so many rows."""
        self.between.view(np.uint8)[:] = MARK
        y = np.zeros((self.rows, padded_n(N)), np.float32)
        named: list[Operands] = [
            {
                "rows": count(self.rows), "x": wide_rows(self.x),
                "weight": pad_vector(self.scale), "y": self.between,
            },
            {
                "rows": count(self.rows), "x": self.between, "w": self.w, "bias": 0, "y": y,
                "y_row_bytes": y.strides[0], "panels": padded_n(N) // PANEL, **NOTHING_FOLLOWS,
                **self.scratch,
            },
        ]  # fmt: skip
        run_native(
            HOST_TARGETS[0], self.ops, named, num_threads=num_threads, copies=((room, 0), (0, room))
        )
        return y

    def rows_made(self) -> int:
        written = (self.between.view(np.uint8) != MARK).any(axis=1)
        assert written[: written.sum()].all()
        return int(written.sum())


@pytest.mark.parametrize("weight", (DType.BF16, DType.Q8))
@pytest.mark.parametrize("rows", (1, 3, MOST_COPIED_ROWS, MOST_COPIED_ROWS + 1))
def test_copies_give_the_bits_of_shared_rows(weight: DType, rows: int) -> None:
    both = NormAndLayer(weight, rows)
    for num_threads in THREADS:
        shared = both.run(num_threads, 0)
        assert both.rows_made() == rows
        assert_same_bits(both.run(num_threads, ROOM), shared, f"{rows} rows, {num_threads} threads")
        are_copied = rows <= MOST_COPIED_ROWS and rows * num_threads <= ROOM
        assert both.rows_made() == (rows * num_threads if are_copied else rows)
