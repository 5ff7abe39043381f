"""quantize_linears: linear layers take the weights and activations of their scheme.

    linear(x, w[, b])  ->  linear(quantize(x), w'[, b])

Layers have one scheme, the head (the product outside of layers) and the embedding another. The
constant w' is w, quantised when it is loaded. Weights that the checkpoint holds quantised stay as
they are. One quantize serves all products of one x. Groups must divide a matrix's inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from tidemill.base.dtypes import DType
from tidemill.base.errors import UnsupportedError
from tidemill.ir.graph import Constant, Graph, Op, TensorType, Value
from tidemill.ir.storage import Array, narrow, widen
from tidemill.quant.schemes import NO_QUANTIZATION, Quantization, Scheme

_WEIGHTS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class QuantizeLinears:
    """The pass."""

    quantization: Quantization = NO_QUANTIZATION
    name: str = "quantize_linears"

    def apply(self, graph: Graph) -> Graph:
        """Give every linear layer its scheme."""
        rewrite = _Rewrite({each.value.name: each for each in graph.constants})
        for op in graph.ops:
            layers, head = self.quantization.layers, self.quantization.head
            rewrite.take(op, layers if op.layer >= 0 else head)
        # The table's type may have changed after the embedding was taken.
        ops = tuple(replace(op, inputs=tuple(map(rewrite.now, op.inputs))) for op in rewrite.ops)
        return replace(graph, ops=ops, constants=tuple(rewrite.constants.values()))


@dataclass
class _Rewrite:
    """The ops so far, the constants, and the quantised copies of activations."""

    constants: dict[str, Constant]
    ops: list[Op] = field(default_factory=list)
    copies: dict[str, Value] = field(default_factory=dict)

    def take(self, op: Op, scheme: Scheme) -> None:
        """Append an op, quantised if it is a linear layer or the embedding."""
        is_one = op.kind in ("linear", "embedding") and op.inputs[1].name in self.constants
        if scheme.weight is None or not is_one:
            self.ops.append(op)
            return
        x, weight, *bias = op.inputs
        if not self.now(weight).type.dtype.is_coded:
            flag = "--quant" if op.layer >= 0 else "--quant_head"
            constant = self.constants[weight.name]
            self.constants[weight.name] = _quantized(constant, scheme.weight, flag)
        if scheme.activation is not None and op.kind == "linear":
            x = self._copy_of(x, op.layer)
        self.ops.append(replace(op, inputs=(x, self.now(weight), *bias)))

    def _copy_of(self, x: Value, layer: int) -> Value:
        if x.name not in self.copies:
            copy = Value(f"{x.name}.q8", TensorType(DType.Q8, x.type.shape))
            self.ops.append(Op("quantize", (x,), (copy,), {}, layer))
            self.copies[x.name] = copy
        return self.copies[x.name]

    def now(self, value: Value) -> Value:
        """Return a value as it is after the rewrite so far."""
        return self.constants[value.name].value if value.name in self.constants else value


def _quantized(constant: Constant, dtype: DType, flag: str) -> Constant:
    """Return the constant in the type that a flag asks for, quantised when it is loaded."""
    source = constant.value.type
    columns = int(source.shape[1])
    if dtype is DType.BF12 and source.dtype is not DType.BF16:
        raise UnsupportedError(
            "only bf16 weights are kept in 12 bits",
            where=f"{constant.value.name}, {flag}",
            expected="bf16",
            got=source.dtype.value,
            hint="convert with --dtype bfloat16, or choose another scheme",
        )
    if dtype.group_size and columns % dtype.group_size:
        raise UnsupportedError(
            "groups do not divide a matrix's inputs",
            where=f"{constant.value.name}, {flag}",
            expected=f"a multiple of {dtype.group_size}",
            got=str(columns),
            hint="choose a scheme with smaller groups, or with none, such as w8a8",
        )
    value = Value(constant.value.name, TensorType(dtype, source.shape))
    load = constant.load
    return Constant(
        value, constant.source, None if load is None else _then(load, source.dtype, dtype)
    )


def _then(load: Callable[[], Array], source: DType, dtype: DType) -> Callable[[], Array]:
    if dtype is DType.BF12:
        return load  # the same bits, until they are packed
    return lambda: _narrowed(load(), source, dtype)


def _narrowed(stored: Array, source: DType, dtype: DType) -> Array:
    """Quantise some rows at once: what is computed between stays in a core's cache."""
    at_once = max(1, _WEIGHTS_AT_ONCE // stored.shape[1])
    parts = [
        narrow(widen(stored[first : first + at_once], source), dtype)
        for first in range(0, len(stored), at_once)
    ]
    return np.concatenate(parts)
