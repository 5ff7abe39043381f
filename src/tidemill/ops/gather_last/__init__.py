"""gather_last: the rows whose logits are wanted.

    out[l, :] = h[logit_rows[l], :]

Legend: T tokens, L logit rows, H columns. Most prompt tokens need no logits; what follows runs on
L rows only. Exact.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Op, TensorType
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import (
    ACTIVATION_DTYPES,
    Attrs,
    Types,
    expect_count,
    expect_dims,
    expect_dtype,
)
from tidemill.ops.row import Cost, OpRow, StepSizes


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: (a[T, H], i32[L]) -> a[L, H], a being f32 or bf16."""
    expect_count(types, 2)
    h, logit_rows = types
    expect_dtype("h", h, *ACTIVATION_DTYPES)
    expect_dtype("logit_rows", logit_rows, DType.I32)
    _, hidden = expect_dims("h", h, 2)
    (rows,) = expect_dims("logit_rows", logit_rows, 1)
    return (TensorType(h.dtype, (rows, hidden)),)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Pick the rows."""
    h_TH, logit_rows_L = inputs
    return (h_TH[logit_rows_L],)


def cost(op: Op, sizes: StepSizes) -> Cost:
    """Count each wanted row read and written."""
    return Cost(0, 2 * sizes.bytes(op.outputs[0].type) + sizes.bytes(op.inputs[1].type))


ROW = OpRow("gather_last", rule, reference, cost)
