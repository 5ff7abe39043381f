"""fuse_rope_cache: rotation and attention are cut anew, at the cache.

    attention(rope(qkv, ...))  ->  paged_attention(rope_cache(qkv, ...))

rope_cache rotates, stores keys and values, and scales the queries; paged_attention only reads the
cache. The queries take rope's name, as they stand in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.builder.pass_contract import GraphIndex, replace_ops
from tidemill.ir.graph import Graph, Op, TensorType, Value
from tidemill.ops.heads import HEAD_ATTRS


@dataclass(frozen=True)
class FuseRopeCache:
    """The pass; it has no options."""

    name: str = "fuse_rope_cache"

    def apply(self, graph: Graph) -> Graph:
        """Cut every such pair anew."""
        index = GraphIndex(graph)
        changes: dict[int, Sequence[Op]] = {}
        for at, op in enumerate(graph.ops):
            if op.kind != "attention":
                continue
            rope_at = index.sole_maker(op.inputs[0], "rope")
            if rope_at is not None and _have_same_heads(graph.ops[rope_at], op):
                changes |= {rope_at: (), at: _split(graph.ops[rope_at], op)}
        return replace_ops(graph, changes)


def _have_same_heads(rope: Op, attention: Op) -> bool:
    return all(rope.attrs[name] == attention.attrs[name] for name in HEAD_ATTRS)


def _split(rope: Op, attention: Op) -> tuple[Op, Op]:
    dtype = DType(attention.attrs["dtype"])
    queries = Value(rope.outputs[0].name, TensorType(dtype, attention.outputs[0].type.shape))
    heads = {name: attention.attrs[name] for name in HEAD_ATTRS}
    cache_dtype = attention.attrs["cache_dtype"]
    attrs = {
        **heads,
        "rotary_dim": rope.attrs["rotary_dim"],
        "scale": attention.attrs["scale"],
        "dtype": dtype.value,
        "cache_dtype": cache_dtype,
    }
    layer = attention.layer
    return (
        Op("rope_cache", rope.inputs, (queries,), attrs, layer),
        Op(
            "paged_attention",
            (queries,),
            attention.outputs,
            {**heads, "window": attention.attrs["window"], "cache_dtype": cache_dtype},
            layer,
        ),
    )
