"""silu: the smooth gate x * sigmoid(x), element by element.

    out = x / (1 + exp(-x))

f32 in, f32 out. For large negative x the exponential overflows to infinity and the quotient is
-0, which is the right limit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Op, TensorType
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import Attrs, Types, expect_count, expect_dtype
from tidemill.ops.row import OpRow, elementwise_cost


def silu(x: Array) -> Array:
    """Compute x * sigmoid(x)."""
    with np.errstate(over="ignore"):
        out: Array = x / (1 + np.exp(-x))
    return out


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: f32[...] -> f32[...], the same shape."""
    expect_count(types, 1)
    expect_dtype("x", types[0], DType.F32)
    return (types[0],)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Activate."""
    return (silu(inputs[0]),)


ROW = OpRow("silu", rule, reference, elementwise_cost(4), is_row_wise=True)
