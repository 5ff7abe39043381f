"""mul: the product of two values, element by element.

    out = x * y

f32 in; `dtype` is the result's element type, the activation type of the matrix product that
follows.
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
    expect_dtype,
    expect_dtype_attr,
    expect_type,
)
from tidemill.ops.row import OpRow, elementwise_cost


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: (f32[...], f32[...]) -> activation[...], one shape."""
    expect_count(types, 2)
    x, y = types
    expect_dtype("x", x, DType.F32)
    expect_type("y", y, DType.F32, *x.shape)
    return (TensorType(expect_dtype_attr(attrs, "dtype", *ACTIVATION_DTYPES), x.shape),)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Multiply."""
    return (inputs[0] * inputs[1],)


ROW = OpRow("mul", rule, reference, elementwise_cost(1), attrs={"dtype": str}, is_row_wise=True)
