"""quantize_cache: keys and values are cached in another type than the one they were drawn with.

    attention(qkv) {cache_dtype="bf16"}  ->  attention(qkv) {cache_dtype="q8"}

The graph's other values stay as they are: the cache's type is a matter of what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Graph


@dataclass(frozen=True)
class QuantizeCache:
    """The pass; `dtype` None leaves all caches as they were drawn."""

    dtype: DType | None = None
    name: str = "quantize_cache"

    def apply(self, graph: Graph) -> Graph:
        """Give every attention's cache its type."""
        if self.dtype is None:
            return graph
        ops = tuple(
            replace(op, attrs={**op.attrs, "cache_dtype": self.dtype.value})
            if op.kind == "attention"
            else op
            for op in graph.ops
        )
        return replace(graph, ops=ops)
