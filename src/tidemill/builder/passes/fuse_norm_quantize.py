"""fuse_norm_quantize: a norm whose result is only quantised writes levels itself.

    quantize(rms_norm(x, w) {dtype=any})  ->  rms_norm(x, w) {dtype="q8"}

The rounding of the norm's result to its own type, between the two, falls away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tidemill.builder.pass_contract import GraphIndex, replace_ops
from tidemill.ir.graph import Graph, Op


@dataclass(frozen=True)
class FuseNormQuantize:
    """The pass; it has no options."""

    name: str = "fuse_norm_quantize"

    def apply(self, graph: Graph) -> Graph:
        """Fuse every such pair."""
        index = GraphIndex(graph)
        changes: dict[int, Sequence[Op]] = {}
        for at, op in enumerate(graph.ops):
            norm_at = index.sole_maker(op.inputs[0], "rms_norm") if op.kind == "quantize" else None
            if norm_at is not None:
                norm = graph.ops[norm_at]
                attrs = {**norm.attrs, "dtype": op.outputs[0].type.dtype.value}
                changes |= {at: (), norm_at: (replace(norm, outputs=op.outputs, attrs=attrs),)}
        return replace_ops(graph, changes)
