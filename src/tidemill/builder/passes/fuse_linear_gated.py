"""fuse_linear_gated: the two products of a gated MLP, activation and join become one op.

    mul(silu(linear(x, fc)), linear(x, gate))  ->  linear_gated(x, fc, gate)

Only where nothing else uses what is in between, both products read the same x, and either both or
neither have a bias. The fused op's result has the element type of the join.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.builder.pass_contract import GraphIndex, replace_ops
from tidemill.ir.graph import AttrValue, Graph, Op, Value


@dataclass(frozen=True)
class FuseLinearGated:
    """The pass; it has no options."""

    name: str = "fuse_linear_gated"

    def apply(self, graph: Graph) -> Graph:
        """Fuse every such group."""
        index = GraphIndex(graph)
        changes: dict[int, Sequence[Op]] = {}
        for at, op in enumerate(graph.ops):
            if op.kind != "mul":
                continue
            for activated, gated in (op.inputs, op.inputs[::-1]):
                group = _match(index, activated, gated)
                fused = group and _fuse(graph, op, *group[1:])
                if group and fused:
                    changes |= {absorbed: () for absorbed in group} | {at: (fused,)}
                    break
        return replace_ops(graph, changes)


def _match(index: GraphIndex, activated: Value, gated: Value) -> tuple[int, int, int] | None:
    """Find the silu and the two linears."""
    silu_at = index.sole_maker(activated, "silu")
    gate_at = index.sole_maker(gated, "linear")
    if silu_at is None or gate_at is None:
        return None
    fc_at = index.sole_maker(index.graph.ops[silu_at].inputs[0], "linear")
    return None if fc_at is None else (silu_at, fc_at, gate_at)


def _fuse(graph: Graph, mul: Op, fc_at: int, gate_at: int) -> Op | None:
    """Make the fused op, if the two products fit together."""
    x, fc, *fc_bias = graph.ops[fc_at].inputs
    gate_x, gate, *gate_bias = graph.ops[gate_at].inputs
    is_pair = x == gate_x and fc.type == gate.type and len(fc_bias) == len(gate_bias)
    if not is_pair:
        return None
    dtype = mul.outputs[0].type.dtype.value
    attrs: dict[str, AttrValue] = {"activation": "silu", "dtype": dtype}
    inputs = (x, fc, gate, *fc_bias, *gate_bias)
    return Op("linear_gated", inputs, mul.outputs, attrs, mul.layer)
