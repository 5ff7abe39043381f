"""The attention block: one product for queries, keys and values; rope; attention; output product.

In: normalised activations. Out: what is to be added to the residual stream. The checkpoint holds
queries, keys and values in one matrix, in this order.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.ir.graph import Value
from tidemill.network.layers.weights import Weights


@dataclass(frozen=True)
class AttentionShape:
    """Heads and widths of an attention block; `window` 0 means that all positions are seen."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    rotary_dim: int
    has_bias: bool
    window: int = 0


@dataclass(frozen=True)
class RopeInputs:
    """What every layer's rope reads: positions, and the two tables."""

    positions: Value
    cos: Value
    sin: Value


def draw_attention(
    weights: Weights, prefix: str, shape: AttentionShape, x: Value, rope: RopeInputs
) -> Value:
    """Draw one block. `prefix` is the block's name in the checkpoint, with its dot."""
    pen = weights.pen
    heads = {
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "head_size": shape.head_size,
    }
    q_width = shape.num_heads * shape.head_size
    qkv_width = q_width + 2 * shape.num_kv_heads * shape.head_size
    qkv_weight = weights.matrix(prefix + "qkv.weight", qkv_width, shape.hidden_size)
    qkv_bias = [weights.vector(prefix + "qkv.bias", qkv_width)] if shape.has_bias else []
    qkv = pen.op("linear", x, qkv_weight, *qkv_bias, name="qkv")
    rotated = pen.op(
        "rope",
        qkv,
        rope.positions,
        rope.cos,
        rope.sin,
        name="rotated",
        **heads,
        rotary_dim=shape.rotary_dim,
    )
    attended = pen.op(
        "attention",
        rotated,
        name="attended",
        **heads,
        window=shape.window,
        scale=shape.head_size**-0.5,
        dtype=x.type.dtype.value,
        # Keys and values are cached as wide as the weights.
        cache_dtype=weights.dtype.value,
    )
    dense = weights.matrix(prefix + "dense.weight", shape.hidden_size, q_width)
    bias = [weights.vector(prefix + "dense.bias", shape.hidden_size)] if shape.has_bias else []
    return pen.op("linear", attended, dense, *bias, name="attention_out")
