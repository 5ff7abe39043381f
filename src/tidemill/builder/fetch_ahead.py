"""Which linear layers fetch the cache for which attention: those just before it.

In: a lowered-to graph's ops. Out: for each such layer, the attention. Weights that are read between
the fetching and the attention must not push out what was fetched: layers count back from the
attention until their weights come to `MOST_WEIGHT_BYTES`, a part of a shared cache's usual size.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.builder.tactics import LINEAR_KINDS
from tidemill.ir.graph import Op, Value

MOST_WEIGHT_BYTES = 8 << 20


def attentions_to_fetch_for(ops: Sequence[Op]) -> dict[str, Op]:
    """Return the attention to fetch for by the name of a linear op's output.

    Attention with a window reads little of a long context: nothing is fetched for it.
    """
    found: dict[str, Op] = {}
    attention, left_bytes = None, 0
    for op in reversed(ops):
        if op.kind == "paged_attention":
            attention, left_bytes = op, 0 if op.attrs["window"] else MOST_WEIGHT_BYTES
        elif op.kind in LINEAR_KINDS and attention is not None and left_bytes > 0:
            found[op.outputs[0].name] = attention
            left_bytes -= sum(_matrix_bytes(value) for value in op.inputs[1:])
    return found


def _matrix_bytes(value: Value) -> int:
    rows, *columns = value.type.shape
    is_matrix = isinstance(rows, int) and len(columns) == 1
    return int(rows) * value.type.dtype.row_bytes(int(columns[0])) if is_matrix else 0
