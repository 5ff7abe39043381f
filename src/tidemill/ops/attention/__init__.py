"""attention: stores the step's keys and values, then attends causally over the layer's cache.

    p[j] = exp(scale * q . k[j] - m) for position - window < j <= position;
    out = sum_j p[j] v[j] / sum_j p[j]

Legend: T tokens, Q columns of qkv, N heads, H head width. Takes rotated qkv; the plain form that
models are drawn with. `dtype` is the result's element type, `cache_dtype` that of stored keys and
values; `window` 0 means no lower bound. Passes split it into rope_cache and paged_attention.

Source: Vaswani et al., "Attention Is All You Need"; grouped heads as in Ainslie et al., "GQA".
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Op, TensorType
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import (
    ACTIVATION_DTYPES,
    CACHE_DTYPES,
    Attrs,
    Types,
    expect_count,
    expect_dims,
    expect_dtype_attr,
    expect_type,
    expect_window,
)
from tidemill.ops.heads import HEAD_ATTRS, Heads
from tidemill.ops.paged_attention import attend_batch, attention_cost
from tidemill.ops.rope_cache import LOG2_E, store_keys_values
from tidemill.ops.row import Cost, OpRow, StepSizes


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: f32[T, Q] -> activation[T, num_heads * head_size]."""
    expect_count(types, 1)
    heads = Heads.of(attrs)
    expect_window(attrs)
    rows, _ = expect_dims("qkv", types[0], 2)
    expect_type("qkv", types[0], DType.F32, rows, heads.qkv_width)
    expect_dtype_attr(attrs, "cache_dtype", *CACHE_DTYPES)
    dtype = expect_dtype_attr(attrs, "dtype", *ACTIVATION_DTYPES)
    return (TensorType(dtype, (rows, heads.q_width)),)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Store, then attend."""
    queries, keys, values = Heads.of(op.attrs).split(inputs[0])
    store_keys_values(op, keys, values, batch, numerics)
    factor = numerics.precision(float(op.attrs["scale"]) * LOG2_E)
    return attend_batch(op, queries * factor, batch, numerics)


def cost(op: Op, sizes: StepSizes) -> Cost:
    """Count attention over the cache, and the stored keys and values."""
    heads = Heads.of(op.attrs)
    attended = attention_cost(op, sizes, heads)
    stored = sizes.tokens * heads.kv_token_bytes(op.attrs)
    return Cost(attended.flops, attended.bytes + stored)


ROW = OpRow(
    "attention",
    rule,
    reference,
    cost,
    attrs={**HEAD_ATTRS, "window": int, "scale": float, "dtype": str, "cache_dtype": str},
    writes_cache=True,
)
