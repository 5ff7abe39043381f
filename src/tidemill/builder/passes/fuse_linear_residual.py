"""fuse_linear_residual: a matrix product and the addition that follows become one op.

    add(residual, linear(x, w[, b]))  ->  linear_residual(x, w[, b], residual)

Only where nothing else uses the product, and the residual is used last by this addition: the
fused op overwrites its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.builder.pass_contract import GraphIndex, replace_ops
from tidemill.ir.graph import Graph, Op, Value


@dataclass(frozen=True)
class FuseLinearResidual:
    """The pass; it has no options."""

    name: str = "fuse_linear_residual"

    def apply(self, graph: Graph) -> Graph:
        """Fuse every such pair."""
        index = GraphIndex(graph)
        changes: dict[int, Sequence[Op]] = {}
        overwritten: set[str] = set()
        for at, op in enumerate(graph.ops):
            if op.kind != "add":
                continue
            for product, residual in (op.inputs, op.inputs[::-1]):
                linear_at = index.sole_maker(product, "linear")
                if linear_at is None or not index.is_dead_after(residual, at):
                    continue
                linear = graph.ops[linear_at]
                # The product moves down to the addition, past ops fused before: what it reads
                # must still be there, and must not be what it writes.
                gone = overwritten | {residual.name}
                if not any(value.name in gone for value in linear.inputs):
                    changes |= {linear_at: (), at: (_fuse(linear, residual, op),)}
                    overwritten.add(residual.name)
                    break
        return replace_ops(graph, changes)


def _fuse(linear: Op, residual: Value, add: Op) -> Op:
    return Op("linear_residual", (*linear.inputs, residual), add.outputs, {}, add.layer)
