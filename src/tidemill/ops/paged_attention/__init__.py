"""paged_attention: causal attention of this step's queries over the layer's cache.

    p[j] = 2^(q . k[j] - m) for position - window < j <= position, m the maximum;
    out = sum_j p[j] v[j] / sum_j p[j]

Legend: t tokens of one sequence, N heads, H head width, J cached positions. Queries come scaled by
scale * log2(e) from rope_cache, so that the softmax is base 2. Query head n reads key-value head
n // (num_heads / num_kv_heads). Accumulates in f32 or wider; the result has q's element type.
`cache_dtype` is the element type that keys and values were stored in; `window` 0 means that all
earlier positions are seen. No token's result depends on another sequence, or on how its prompt was
cut into steps.

Source: Vaswani et al., "Attention Is All You Need"; Kwon et al., "PagedAttention" for the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tidemill.ir.graph import Op, TensorType
from tidemill.ir.storage import Array, FloatArray
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.expect import (
    ACTIVATION_DTYPES,
    CACHE_DTYPES,
    Attrs,
    Types,
    expect_count,
    expect_dims,
    expect_dtype,
    expect_dtype_attr,
    expect_type,
    expect_window,
)
from tidemill.ops.heads import HEAD_ATTRS, Heads
from tidemill.ops.row import Cost, OpRow, StepSizes


def attend(
    queries_tNH: FloatArray,
    keys_JnH: FloatArray,
    values_JnH: FloatArray,
    start: int,
    window: int,
) -> FloatArray:
    """Attend from positions start + [0, t) to the last `window` positions up to each one's own."""
    out_tNH = np.empty_like(queries_tNH)
    group = queries_tNH.shape[1] // keys_JnH.shape[1]
    for row in range(len(queries_tNH)):
        end = start + row + 1
        first = max(0, end - window) if window else 0
        for head in range(queries_tNH.shape[1]):
            keys_JH = keys_JnH[first:end, head // group]
            values_JH = values_JnH[first:end, head // group]
            scores_J = keys_JH @ queries_tNH[row, head]
            weights_J = np.exp2(scores_J - scores_J.max())
            out_tNH[row, head] = weights_J @ values_JH / weights_J.sum()
    return out_tNH


def attend_batch(
    op: Op, queries_TNH: FloatArray, batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Attend for every sequence of the step, over the cache of the op's layer."""
    out_TNH, window = np.empty_like(queries_TNH), expect_window(op.attrs)
    for span in batch.spans():
        if span.first < span.last:
            keys, values = batch.store.read(op.layer, span.sequence)
            out_TNH[span.first : span.last] = attend(
                queries_TNH[span.first : span.last],
                keys.astype(numerics.precision, copy=False),
                values.astype(numerics.precision, copy=False),
                span.start,
                window,
            )
    return (out_TNH.reshape(len(out_TNH), -1),)


def attention_cost(op: Op, sizes: StepSizes, heads: Heads) -> Cost:
    """Count two products for each (query, key) pair and head; the cache read once; in and out.

    With a window this is an upper bound: the step's sizes do not tell one sequence from another.
    """
    pairs, kv_tokens = sizes.attention_pairs, sizes.kv_tokens
    if window := expect_window(op.attrs):
        pairs = min(pairs, sizes.tokens * window)
        kv_tokens = min(kv_tokens, sizes.tokens + sizes.sequences * (window - 1))
    flops = 4.0 * pairs * heads.num_heads * heads.head_size
    cache = kv_tokens * heads.kv_token_bytes(op.attrs)
    return Cost(flops, cache + sizes.bytes(op.inputs[0].type) + sizes.bytes(op.outputs[0].type))


def rule(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """Type: activation[T, num_heads * head_size] -> the same."""
    expect_count(types, 1)
    heads = Heads.of(attrs)
    expect_dtype_attr(attrs, "cache_dtype", *CACHE_DTYPES)
    expect_window(attrs)
    expect_dtype("q", types[0], *ACTIVATION_DTYPES)
    rows, _ = expect_dims("q", types[0], 2)
    expect_type("q", types[0], types[0].dtype, rows, heads.q_width)
    return (types[0],)


def reference(
    op: Op, inputs: Sequence[Array], batch: Batch, numerics: Numerics
) -> tuple[Array, ...]:
    """Attend."""
    heads = Heads.of(op.attrs)
    queries_TNH = inputs[0].reshape(-1, heads.num_heads, heads.head_size)
    return attend_batch(op, queries_TNH, batch, numerics)


def cost(op: Op, sizes: StepSizes) -> Cost:
    """Count attention over the cache."""
    return attention_cost(op, sizes, Heads.of(op.attrs))


ROW = OpRow(
    "paged_attention",
    rule,
    reference,
    cost,
    attrs={**HEAD_ATTRS, "window": int, "cache_dtype": str},
)
