"""rope_cache: rotates queries and keys, stores keys and values in the cache, returns queries.

    out = rope(queries) * scale * log2(e); cache[layer, sequence, position] = rope(keys), values

Legend: T tokens, Q columns of qkv, P positions, R rotary_dim / 2. Made from rope and the writing
half of attention. Rotation in f32; `dtype` is the queries' element type, `cache_dtype` that of
stored keys and values. `store_keys_values` also serves attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import e, log2

from tidemill.ir.graph import Op, TensorType
from tidemill.ir.storage import Array, FloatArray
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import (
    ACTIVATION_DTYPES,
    CACHE_DTYPES,
    Attrs,
    Types,
    expect_dtype_attr,
)
from tidemill.ops.heads import HEAD_ATTRS, Heads
from tidemill.ops.rope import ROW as ROPE
from tidemill.ops.rope import rope_type, rotate
from tidemill.ops.row import Cost, OpRow, StepSizes

LOG2_E = log2(e)


def store_keys_values(
    op: Op, keys_TnH: FloatArray, values_TnH: FloatArray, batch: Batch, numerics: Numerics
) -> None:
    """Store the step's keys and values for the op's layer, as its `cache_dtype` holds them."""
    cache_dtype = expect_dtype_attr(op.attrs, "cache_dtype", *CACHE_DTYPES)
    keys_TnH = numerics.settle(keys_TnH, cache_dtype)
    values_TnH = numerics.settle(values_TnH, cache_dtype)
    for span in batch.spans():
        rows = slice(span.first, span.last)
        if span.first < span.last:
            batch.store.write(op.layer, span.sequence, span.start, keys_TnH[rows], values_TnH[rows])


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: (f32[T, Q], i32[T], f32[P, R], f32[P, R]) -> activation[T, num_heads * head_size]."""
    qkv = rope_type(types, attrs)
    expect_dtype_attr(attrs, "cache_dtype", *CACHE_DTYPES)
    dtype = expect_dtype_attr(attrs, "dtype", *ACTIVATION_DTYPES)
    return (TensorType(dtype, (qkv.shape[0], Heads.of(attrs).q_width)),)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Rotate, store, scale."""
    qkv_TQ, positions_T, cos_PR, sin_PR = inputs
    cos_TR, sin_TR = cos_PR[positions_T], sin_PR[positions_T]
    queries, keys, values = Heads.of(op.attrs).split(qkv_TQ)
    store_keys_values(op, rotate(keys, cos_TR, sin_TR), values, batch, numerics)
    factor = numerics.precision(float(op.attrs["scale"]) * LOG2_E)
    return ((rotate(queries, cos_TR, sin_TR) * factor).reshape(len(qkv_TQ), -1),)


def cost(op: Op, sizes: StepSizes) -> Cost:
    """Count the rotation, and the stored keys and values."""
    rotation = ROPE.cost(op, sizes)
    stored = sizes.tokens * Heads.of(op.attrs).kv_token_bytes(op.attrs)
    return Cost(rotation.flops, rotation.bytes + stored)


ROW = OpRow(
    "rope_cache",
    rule,
    reference,
    cost,
    attrs={**HEAD_ATTRS, "rotary_dim": int, "scale": float, "dtype": str, "cache_dtype": str},
    writes_cache=True,
)
