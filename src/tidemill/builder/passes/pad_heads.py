"""pad_heads: attention heads are widened with zeros to what the kernels take.

    linear(attention(rope(linear(x, qkv), ...)), dense)  ->  the same with wider heads

The rows of qkv (and its bias) that make a head are followed by zero rows, the columns of dense by
zero columns: the new elements of queries, keys and values are zero, add nothing to a score, and
meet zeros in the output product. Rotation and scale stay those of the true width. Wide enough
heads, or heads that are joined otherwise, are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tidemill.builder.pass_contract import GraphIndex
from tidemill.ir.graph import Constant, Graph, Op, TensorType, Value
from tidemill.ir.storage import Array
from tidemill.ops.heads import Heads
from tidemill.ops.layout import LANES, round_up

Pad = Callable[[Array], Array]


@dataclass(frozen=True)
class PadHeads:
    """The pass. `unit` is what head widths must be a multiple of."""

    unit: int = LANES
    name: str = "pad_heads"

    def apply(self, graph: Graph) -> Graph:
        """Widen the heads of every attention block that needs it."""
        index = GraphIndex(graph)
        rewrite = _Rewrite(graph)
        for at, op in enumerate(graph.ops):
            if op.kind == "attention" and int(op.attrs["head_size"]) % self.unit:
                chain = _find_chain(index, at)
                if chain is not None:
                    rewrite.widen(chain, round_up(int(op.attrs["head_size"]), self.unit))
        return rewrite.result()


def _find_chain(index: GraphIndex, attention: int) -> tuple[int, int, int, int] | None:
    """Find the four ops: product, rope, attention, output product; None where they differ."""
    ops = index.graph.ops
    rope = index.sole_maker(ops[attention].inputs[0], "rope")
    product = None if rope is None else index.sole_maker(ops[rope].inputs[0], "linear")
    dense = index.sole_user(ops[attention].outputs[0], "linear")
    if rope is None or product is None or dense is None:
        return None
    constants = [*ops[product].inputs[1:], ops[dense].inputs[1]]
    are_own = all(index.num_users(value) == 1 for value in constants)
    return (product, rope, attention, dense) if are_own else None


class _Rewrite:
    """A graph's ops and constants while some are replaced."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._ops = list(graph.ops)
        self._constants = {each.value.name: each for each in graph.constants}

    def result(self) -> Graph:
        constants = tuple(self._constants.values())
        return replace(self._graph, ops=tuple(self._ops), constants=constants)

    def widen(self, chain: tuple[int, int, int, int], width: int) -> None:
        """Widen the heads of one chain to `width`."""
        product, rope, attention, dense = (self._ops[at] for at in chain)
        heads = Heads.of(attention.attrs)
        wide = replace(heads, head_size=width)
        num_qkv = heads.num_heads + 2 * heads.num_kv_heads

        def pad_rows(array: Array) -> Array:
            return _pad(array, 0, num_qkv, width)

        def pad_columns(array: Array) -> Array:
            columns = int(dense.inputs[1].type.shape[1])  # scales may follow them
            padded = _pad(array[:, :columns], 1, heads.num_heads, width)
            return np.concatenate([padded, array[:, columns:]], axis=1)

        x, *weights = product.inputs
        rows = wide.qkv_width
        weights = [self._constant(w, (rows, *w.type.shape[1:]), pad_rows) for w in weights]
        qkv = _retyped(product.outputs[0], rows)
        rotated = replace(rope.outputs[0], type=qkv.type)
        attended = _retyped(attention.outputs[0], wide.q_width)
        weight = dense.inputs[1]
        weight = self._constant(weight, (weight.type.shape[0], wide.q_width), pad_columns)
        new = (
            replace(product, inputs=(x, *weights), outputs=(qkv,)),
            _with_width(replace(rope, inputs=(qkv, *rope.inputs[1:]), outputs=(rotated,)), width),
            _with_width(replace(attention, inputs=(rotated,), outputs=(attended,)), width),
            replace(dense, inputs=(attended, weight, *dense.inputs[2:])),
        )
        for at, op in zip(chain, new, strict=True):
            self._ops[at] = op

    def _constant(self, value: Value, shape: tuple[int | str, ...], pad: Pad) -> Value:
        """Put a padded constant where `value` stood."""
        old = self._constants[value.name]
        load = old.load
        wide = replace(value, type=TensorType(value.type.dtype, shape))
        self._constants[value.name] = Constant(
            wide, old.source, None if load is None else lambda: pad(load())
        )
        return wide


def _pad(array: Array, axis: int, num_heads: int, width: int) -> Array:
    """Follow each of the heads along an axis with zeros up to `width`."""
    shape = array.shape
    split = array.reshape(*shape[:axis], num_heads, -1, *shape[axis + 1 :])
    missing = width - split.shape[axis + 1]
    pads = [(0, missing if at == axis + 1 else 0) for at in range(split.ndim)]
    return np.pad(split, pads).reshape(*shape[:axis], num_heads * width, *shape[axis + 1 :])


def _retyped(value: Value, columns: int) -> Value:
    return replace(value, type=TensorType(value.type.dtype, (value.type.shape[0], columns)))


def _with_width(op: Op, width: int) -> Op:
    return replace(op, attrs={**op.attrs, "head_size": width})
