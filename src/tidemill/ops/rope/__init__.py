"""rope: rotary position embedding of queries and keys; values pass through.

    half = rotary_dim / 2, c = cos[positions[t]], s = sin[positions[t]]
    out[:half]           = x[:half] * c - x[half:rotary_dim] * s
    out[half:rotary_dim] = x[half:rotary_dim] * c + x[:half] * s
    out[rotary_dim:]     = x[rotary_dim:]

for each query and key head. Legend: T tokens, Q columns of qkv, P positions, R rotary_dim / 2.
f32 throughout. `rotate` and `rope_type` also serve rope_cache.

Source: Su et al., "RoFormer"; halves, not pairs, as in GPT-NeoX.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Op, TensorType
from tidemill.ir.rules import TypeFault
from tidemill.ir.storage import Array, FloatArray
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import (
    Attrs,
    Types,
    expect_count,
    expect_dims,
    expect_int,
    expect_type,
)
from tidemill.ops.heads import HEAD_ATTRS, Heads
from tidemill.ops.row import Cost, OpRow, StepSizes


def rope_type(types: Types, attrs: Attrs) -> TensorType:
    """Return the type of the rotated qkv, f32[T, Q].

    Raises: TypeFault when the tables, the heads or the widths do not fit.
    """
    expect_count(types, 4)
    qkv, positions, cos, sin = types
    rotary_dim = expect_int(attrs, "rotary_dim")
    heads = Heads.of(attrs)
    if rotary_dim % 2 or rotary_dim > heads.head_size:
        raise TypeFault(
            f"attribute rotary_dim: expected even, at most {heads.head_size}, got {rotary_dim}"
        )
    rows, _ = expect_dims("qkv", qkv, 2)
    expect_type("qkv", qkv, DType.F32, rows, heads.qkv_width)
    expect_type("positions", positions, DType.I32, rows)
    table_rows, _ = expect_dims("cos", cos, 2)
    expect_type("cos", cos, DType.F32, table_rows, rotary_dim // 2)
    expect_type("sin", sin, DType.F32, *cos.shape)
    return qkv


def rotate(x_TNH: FloatArray, cos_TR: FloatArray, sin_TR: FloatArray) -> FloatArray:
    """Rotate the heads of each token by its own angles."""
    half = cos_TR.shape[1]
    cos_T1R, sin_T1R = cos_TR[:, None, :], sin_TR[:, None, :]
    first, second = x_TNH[..., :half], x_TNH[..., half : 2 * half]
    rest = x_TNH[..., 2 * half :]
    return np.concatenate(
        [first * cos_T1R - second * sin_T1R, second * cos_T1R + first * sin_T1R, rest], axis=-1
    )


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: (f32[T, Q], i32[T], f32[P, R], f32[P, R]) -> f32[T, Q]."""
    return (rope_type(types, attrs),)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Rotate queries and keys."""
    qkv_TQ, positions_T, cos_PR, sin_PR = inputs
    cos_TR, sin_TR = cos_PR[positions_T], sin_PR[positions_T]
    queries, keys, values = Heads.of(op.attrs).split(qkv_TQ)
    rotated = np.concatenate(
        [rotate(queries, cos_TR, sin_TR), rotate(keys, cos_TR, sin_TR), values], axis=1
    )
    return (rotated.reshape(qkv_TQ.shape),)


def rope_cost(op: Op, sizes: StepSizes) -> Cost:
    """Count three operations a rotated element; one table row a token; qkv in, result out."""
    qkv, positions, cos, _ = (value.type for value in op.inputs)
    heads = Heads.of(op.attrs)
    rotated = sizes.tokens * (heads.num_heads + heads.num_kv_heads) * int(op.attrs["rotary_dim"])
    tables = 2 * sizes.tokens * int(op.attrs["rotary_dim"]) // 2 * cos.dtype.itemsize_bytes
    moved = sizes.bytes(qkv) + sizes.bytes(positions) + sizes.bytes(op.outputs[0].type)
    return Cost(3 * rotated, moved + tables)


ROW = OpRow("rope", rule, reference, rope_cost, attrs={**HEAD_ATTRS, "rotary_dim": int})
