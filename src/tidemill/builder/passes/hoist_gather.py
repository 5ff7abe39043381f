"""hoist_gather: rows whose logits nobody wants leave the step as early as they can.

    gather_last(op(x, w), rows)  ->  op(gather_last(x, rows), w)

for ops that compute each row from the same row alone, up to the last one that does not: of the
last layer's output product and MLP, prompts need one row of hundreds. What others use whole stays
whole. Nothing before the last attention is narrowed, though it might be (an MLP beside it): the
executor runs what follows the first gather once more for other rows. Ops with in-place results come
later, in fusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tidemill.builder.pass_contract import GraphIndex, replace_ops
from tidemill.ir.graph import Graph, Op, TensorType, Value
from tidemill.ops.table import OPS


@dataclass(frozen=True)
class HoistGather:
    """The pass; it has no options."""

    name: str = "hoist_gather"

    def apply(self, graph: Graph) -> Graph:
        """Hoist every gather."""
        changes: dict[int, Sequence[Op]] = {}
        for at, op in enumerate(graph.ops):
            if op.kind == "gather_last":
                changes |= _hoist(graph, at)
        return replace_ops(graph, changes)


def _hoist(graph: Graph, gather_at: int) -> Mapping[int, Sequence[Op]]:
    """Narrow what stands above a gather, and put gathers where rows mix."""
    gather = graph.ops[gather_at]
    rows = gather.inputs[1]
    narrowed, wanted = _narrowed(graph, gather_at)
    if not narrowed:
        return {}
    name_to_value: dict[str, Value] = {}
    changes: dict[int, Sequence[Op]] = {}
    for at in sorted(narrowed):
        op, gathers = graph.ops[at], []
        for value in op.inputs:
            if value.name in wanted and value.name not in name_to_value:
                few = name_to_value[value.name] = _with_rows(value, rows, f"{value.name}.last")
                gathers.append(
                    replace(gather, inputs=(value, rows), outputs=(few,), layer=op.layer)
                )
        outputs = tuple(_with_rows(value, rows, value.name) for value in op.outputs)
        inputs = tuple(name_to_value.get(value.name, value) for value in op.inputs)
        name_to_value |= {value.name: value for value in outputs}
        changes[at] = (*gathers, replace(op, inputs=inputs, outputs=outputs))
    found = name_to_value[gather.inputs[0].name]
    changes[gather_at] = ()
    for at, op in enumerate(graph.ops):
        if gather.outputs[0] in op.inputs:
            inputs = tuple(found if value == gather.outputs[0] else value for value in op.inputs)
            changes[at] = (replace(op, inputs=inputs),)
    return changes


def _narrowed(graph: Graph, gather_at: int) -> tuple[set[int], set[str]]:
    """Ops that only the gathered rows need, and the values that those gather."""
    index, gather = GraphIndex(graph), graph.ops[gather_at]
    narrowed: set[int] = set()
    wanted = {gather.inputs[0].name}
    for at in range(gather_at - 1, -1, -1):
        op = graph.ops[at]
        if not OPS[op.kind].is_row_wise:
            break
        is_wanted = all(value.name in wanted for value in op.outputs)
        if is_wanted and all(index.users(v) <= narrowed | {gather_at} for v in op.outputs):
            narrowed.add(at)
            wanted -= {value.name for value in op.outputs}
            wanted |= {value.name for value in op.inputs if value.type.shape[0] == "T"}
    return narrowed, wanted


def _with_rows(value: Value, rows: Value, name: str) -> Value:
    shape = (*rows.type.shape, *value.type.shape[1:])
    return Value(name, TensorType(value.type.dtype, shape))
