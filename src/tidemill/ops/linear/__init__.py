"""linear: a matrix product with stored weights, and a bias where there is one.

    out[t, n] = sum_k x[t, k] * weight[n, k] + bias[n]

Legend: T rows, K inputs, N outputs. bf16 and bf12 weights meet bf16 activations, f16 and f32
weights meet f32 activations, quantised weights meet any of f32, bf16 and q8; the result is f32.
`product` and `linear_type` also serve the fused forms.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Op, TensorType
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import (
    MATRIX_DTYPES,
    QUANTIZED_ACTIVATIONS,
    Attrs,
    Types,
    expect_count,
    expect_dims,
    expect_dtype,
    expect_size,
    expect_type,
)
from tidemill.ops.row import Cost, OpRow, StepSizes, activation_dtype, moved_bytes

# A matrix product alone, and those that it is fused into.
LINEAR_KINDS = ("linear", "linear_residual", "linear_gated")


def linear_type(x: TensorType, weight: TensorType, bias: TensorType | None) -> TensorType:
    """Return the type of a product, f32[T, N].

    Raises: TypeFault when shapes or element types do not fit.
    """
    rows, inputs = expect_dims("x", x, 2)
    expect_dtype("weight", weight, *MATRIX_DTYPES)
    outputs = expect_size("weight's first dimension", expect_dims("weight", weight, 2)[0])
    expect_type("weight", weight, weight.dtype, outputs, inputs)
    if weight.dtype.is_quantized:
        expect_dtype("x", x, *QUANTIZED_ACTIVATIONS)
    x_dtype = x.dtype if weight.dtype.is_quantized else activation_dtype(weight.dtype)
    expect_type("x", x, x_dtype, rows, inputs)
    if bias is not None:
        expect_type("bias", bias, DType.F32, outputs)
    return TensorType(DType.F32, (rows, outputs))


def product(x_TK: Array, weight_NK: Array, bias_N: Array | None) -> Array:
    """Multiply, and add the bias where there is one."""
    out_TN: Array = x_TK @ weight_NK.T
    return out_TN if bias_N is None else out_TN + bias_N


def product_flops(op: Op, sizes: StepSizes) -> float:
    """Count multiplications and additions of x [T, K] with weight [N, K], inputs 0 and 1."""
    x, weight = op.inputs[0].type, op.inputs[1].type
    outputs = expect_size("weight's first dimension", weight.shape[0])
    return 2.0 * sizes.elements(x) * outputs


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: (activation[T, K], weight[N, K], optional f32[N]) -> f32[T, N]."""
    expect_count(types, 2, 3)
    return (linear_type(types[0], types[1], types[2] if len(types) == 3 else None),)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Multiply."""
    return (product(inputs[0], inputs[1], inputs[2] if len(inputs) == 3 else None),)


def cost(op: Op, sizes: StepSizes) -> Cost:
    """Count the product's arithmetic, and all operands once."""
    return Cost(product_flops(op, sizes), moved_bytes(op, sizes))


ROW = OpRow("linear", rule, reference, cost, is_row_wise=True)
