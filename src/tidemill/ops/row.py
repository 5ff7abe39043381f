"""What an op is: its row of the table.

A row has a type rule, an attribute schema, a NumPy reference in float32 or wider, and a cost in
FLOPs and bytes. Its kernels live beside it in `cpu.py`. `Batch` and `Numerics`, which a reference
also gets, are in `batch.py`. Knows no op by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from tidemill.base.dtypes import DType
from tidemill.ir.graph import Dim, Op, TensorType
from tidemill.ir.rules import AttrTypes, TypeRule
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics

Reference = Callable[[Op, Sequence[Array], Batch, Numerics], tuple[Array, ...]]


@dataclass(frozen=True)
class StepSizes:
    """How much one step asks for: the values of the symbolic dimensions, and attention's work.

    Units: `kv_tokens` counts cached positions read, summed over sequences; `attention_pairs`
    counts (query, key) pairs under the causal mask.
    """

    tokens: int
    sequences: int
    logit_rows: int
    kv_tokens: int
    attention_pairs: int

    def elements(self, value_type: TensorType) -> int:
        """Count the elements of a value of this type."""
        return prod(self._size(dim) for dim in value_type.shape)

    def bytes(self, value_type: TensorType) -> int:
        """Count the bytes of a value of this type."""
        *rows, columns = (self._size(dim) for dim in value_type.shape)
        return prod(rows) * value_type.dtype.row_bytes(columns)

    def _size(self, dim: Dim) -> int:
        symbols = {"T": self.tokens, "S": self.sequences, "L": self.logit_rows}
        return symbols[dim] if isinstance(dim, str) else dim


NO_TOKENS = StepSizes(tokens=0, sequences=0, logit_rows=0, kv_tokens=0, attention_pairs=0)


@dataclass(frozen=True)
class Cost:
    """Arithmetic and memory traffic of one op in one step, each byte counted once."""

    flops: float
    bytes: float


CostRule = Callable[[Op, StepSizes], Cost]


@dataclass(frozen=True)
class OpRow:
    """The meaning of one op.

    `inplace` maps an output to the input whose memory it overwrites (negative inputs count from
    the end). `writes_cache` marks ops that change the key-value cache: they are never dead.
    `is_row_wise` marks ops without effects that compute each row of their result from the same row
    of what they are given, and constants.
    """

    kind: str
    rule: TypeRule
    reference: Reference
    cost: CostRule
    attrs: AttrTypes = field(default_factory=dict)
    inplace: Mapping[int, int] = field(default_factory=dict)
    writes_cache: bool = False
    is_row_wise: bool = False


def moved_bytes(op: Op, sizes: StepSizes) -> int:
    """Count the bytes of all inputs and outputs, for an op that reads all it is given."""
    return sum(sizes.bytes(value.type) for value in (*op.inputs, *op.outputs))


def elementwise_cost(flops_per_element: int) -> CostRule:
    """Return the cost rule of an op that does a fixed amount of work for each output element."""

    def cost(op: Op, sizes: StepSizes) -> Cost:
        elements = sizes.elements(op.outputs[0].type)
        return Cost(flops_per_element * elements, moved_bytes(op, sizes))

    return cost


def activation_dtype(weight: DType) -> DType:
    """Return the element type of activations that meet plain weights of this type.

    bf16 dot products take bf16 activations; f16 and f32 weights meet f32 activations. Quantised
    weights meet whatever the graph has, or quantised activations.
    """
    assert not weight.is_quantized
    return DType.BF16 if weight in (DType.BF16, DType.BF12) else DType.F32
