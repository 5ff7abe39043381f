"""linear_gated: the first half of a gated MLP, two products joined.

    out[t, i] = silu(x @ fc.T + fc_bias)[t, i] * (x @ gate.T + gate_bias)[t, i]

Legend: T rows, K inputs, I intermediate. Made from two linears, silu and mul; `fc` is the branch
that is activated. Both products and the activation are f32; `dtype` is the result's element type.

Source: Shazeer, "GLU Variants Improve Transformer"; names as in TensorRT-LLM's GatedMLP.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.ir.graph import Op, TensorType
from tidemill.ir.rules import TypeFault
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import (
    ACTIVATION_DTYPES,
    Attrs,
    Types,
    expect_count,
    expect_dtype_attr,
    expect_type,
)
from tidemill.ops.linear import linear_type, product, product_flops
from tidemill.ops.row import Cost, OpRow, StepSizes, moved_bytes
from tidemill.ops.silu import silu


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: (act[T, K], fc[I, K], gate[I, K], optional two f32[I]) -> activation[T, I]."""
    expect_count(types, 3, 5)
    if attrs["activation"] != "silu":
        raise TypeFault(f"attribute activation: expected silu, got {attrs['activation']!r}")
    x, fc, gate, *biases = types
    out = linear_type(x, fc, biases[0] if biases else None)
    expect_type("gate", gate, fc.dtype, *fc.shape)
    linear_type(x, gate, biases[1] if biases else None)
    return (TensorType(expect_dtype_attr(attrs, "dtype", *ACTIVATION_DTYPES), out.shape),)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Multiply twice, activate the first, join."""
    x_TK, fc_IK, gate_IK, *biases = inputs
    activated_TI = silu(product(x_TK, fc_IK, biases[0] if biases else None))
    return (activated_TI * product(x_TK, gate_IK, biases[1] if biases else None),)


def cost(op: Op, sizes: StepSizes) -> Cost:
    """Count both products' arithmetic and the join, and all operands once."""
    joined = 5 * sizes.elements(op.outputs[0].type)
    return Cost(2 * product_flops(op, sizes) + joined, moved_bytes(op, sizes))


ROW = OpRow(
    "linear_gated",
    rule,
    reference,
    cost,
    attrs={"activation": str, "dtype": str},
)
