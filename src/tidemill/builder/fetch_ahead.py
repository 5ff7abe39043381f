"""Which linear layers fetch the cache for which attention, and how much of it each.

In: a lowered-to graph's ops. Out: an errand for each linear layer, some of nothing. Weights that
are read between the fetching and the attention must not push out what was fetched: layers count
back from the attention until their weights come to `MOST_WEIGHT_BYTES`, a part of a usual third
cache. They share the cache by their numbers of outputs, as each unit of a layer fetches one piece
at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.ir.graph import Op
from tidemill.ops.linear import LINEAR_KINDS
from tidemill.ops.linear.fetch_ahead import ALL_PIECES

MOST_WEIGHT_BYTES = 8 << 20


@dataclass(frozen=True)
class Errand:
    """Fetch for the attention of `layer`, from one part of `ALL_PIECES` to another.

    All linear layers share their code: one that has nothing to fetch is told so by empty parts.
    """

    layer: int
    fetch_from: int = 0
    fetch_to: int = 0


def plan_errands(ops: Sequence[Op]) -> dict[str, Errand]:
    """Return errands by the name of a linear op's output.

    Attention with a window reads little of a long context: nothing is fetched for it.
    """
    some_layer = next(op.layer for op in ops if op.kind == "paged_attention")
    nothing = Errand(some_layer)
    errands = {op.outputs[0].name: nothing for op in ops if op.kind in LINEAR_KINDS}
    for index, op in enumerate(ops):
        if op.kind == "paged_attention" and not op.attrs["window"]:
            layers = _layers_before(ops[:index])
            total, done = sum(map(_num_outputs, layers)), 0
            for each in layers:
                first, done = done, done + _num_outputs(each)
                bounds = [ALL_PIECES * part // total for part in (first, done)]
                errands[each.outputs[0].name] = Errand(op.layer, *bounds)
    return errands


def _layers_before(ops: Sequence[Op]) -> list[Op]:
    """The last linear layers, in order, back to the attention before them at most."""
    layers: list[Op] = []
    left_bytes = MOST_WEIGHT_BYTES
    for op in reversed(ops):
        if op.kind == "paged_attention" or left_bytes <= 0:
            break
        if op.kind in LINEAR_KINDS:
            layers.insert(0, op)
            row_bytes = op.inputs[1].type.dtype.row_bytes(int(op.inputs[1].type.shape[1]))
            left_bytes -= _num_outputs(op) * row_bytes
    return layers


def _num_outputs(op: Op) -> int:
    matrices = op.inputs[1:3] if op.kind == "linear_gated" else op.inputs[1:2]
    return sum(int(value.type.shape[0]) for value in matrices)
