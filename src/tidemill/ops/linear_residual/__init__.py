"""linear_residual: a matrix product added to the residual stream, in place.

    out[t, n] = residual[t, n] + (sum_k x[t, k] * weight[n, k] + bias[n])

Legend: T rows, K inputs, N outputs. Made from linear and add; the residual is the last input and
the output takes its memory. Everything but x and the weight is f32.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.ir.graph import Op, TensorType
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import Attrs, Types, expect_count, expect_type
from tidemill.ops.linear import linear_type, product, product_flops
from tidemill.ops.row import Cost, OpRow, StepSizes, moved_bytes


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: (activation[T, K], weight[N, K], optional f32[N], f32[T, N]) -> f32[T, N]."""
    expect_count(types, 3, 4)
    out = linear_type(types[0], types[1], types[2] if len(types) == 4 else None)
    expect_type("residual", types[-1], out.dtype, *out.shape)
    return (out,)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Multiply, then add to the residual."""
    bias = inputs[2] if len(inputs) == 4 else None
    return (inputs[-1] + product(inputs[0], inputs[1], bias),)


def cost(op: Op, sizes: StepSizes) -> Cost:
    """Count the product's arithmetic and the addition, and all operands once."""
    additions = sizes.elements(op.outputs[0].type)
    return Cost(product_flops(op, sizes) + additions, moved_bytes(op, sizes))


ROW = OpRow("linear_residual", rule, reference, cost, inplace={0: -1})
