"""add: the sum of two values, element by element.

    out = x + y

f32 in, f32 out: this is the residual stream, which never narrows.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Op, TensorType
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import Attrs, Types, expect_count, expect_dtype, expect_type
from tidemill.ops.row import OpRow, elementwise_cost


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: (f32[...], f32[...]) -> f32[...], one shape."""
    expect_count(types, 2)
    x, y = types
    expect_dtype("x", x, DType.F32)
    expect_type("y", y, DType.F32, *x.shape)
    return (x,)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Add."""
    return (inputs[0] + inputs[1],)


ROW = OpRow("add", rule, reference, elementwise_cost(1), is_row_wise=True)
