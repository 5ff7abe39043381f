"""quantize: each row of activations as int8 levels and one scale.

    scale[t] = max_k |x[t, k]| / 127; out[t, k] = round(x[t, k] * 127 / max_k |x[t, k]|)

Legend: T rows, K columns. In the references a q8 value is the number that level and scale stand
for, and is rounded to a level only where declared types round. Ties go to even; a row of zeros has
scale zero. No row depends on another, so quantising is batch-invariant.
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
from tidemill.ops.row import OpRow, elementwise_cost


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: activation[T, K] -> q8[T, K]."""
    expect_count(types, 1)
    expect_dtype("x", types[0], *ACTIVATION_DTYPES)
    rows, columns = expect_dims("x", types[0], 2)
    return (TensorType(DType.Q8, (rows, columns)),)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Pass the values on: the declared type does the rounding."""
    return (inputs[0],)


ROW = OpRow("quantize", rule, reference, elementwise_cost(3), is_row_wise=True)
