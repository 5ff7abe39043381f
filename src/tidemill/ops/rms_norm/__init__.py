"""rms_norm: each row divided by its root mean square, times a weight.

    out[t, h] = x[t, h] / sqrt(mean_h(x[t, h]^2) + epsilon) * weight[h]

Legend: T rows, H hidden. Accumulates in f32 or wider; `dtype` is the result's element type, the
activation type of the matrix product that follows. No row depends on another.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization"; weight applied last, as in
transformers' LlamaRMSNorm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Op, TensorType
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import (
    QUANTIZED_ACTIVATIONS,
    Attrs,
    Types,
    expect_count,
    expect_dims,
    expect_dtype,
    expect_dtype_attr,
    expect_type,
)
from tidemill.ops.row import OpRow, elementwise_cost


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: (f32[T, H], f32[H]) -> activation[T, H]."""
    expect_count(types, 2)
    x, weight = types
    expect_dtype("x", x, DType.F32)
    rows, hidden = expect_dims("x", x, 2)
    expect_type("weight", weight, DType.F32, hidden)
    return (TensorType(expect_dtype_attr(attrs, "dtype", *QUANTIZED_ACTIVATIONS), (rows, hidden)),)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Normalise every row."""
    x_TH, weight_H = inputs
    mean_square_T1 = np.mean(x_TH * x_TH, axis=1, keepdims=True)
    epsilon = x_TH.dtype.type(op.attrs["epsilon"])
    return (x_TH / np.sqrt(mean_square_T1 + epsilon) * weight_H,)


ROW = OpRow(
    "rms_norm",
    rule,
    reference,
    elementwise_cost(4),
    attrs={"epsilon": float, "dtype": str},
    is_row_wise=True,
)
