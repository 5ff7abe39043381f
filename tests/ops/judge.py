"""Builds one op with its operands, so that tests read as data, action, check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidemill.base.dtypes import DType
from tidemill.ir.graph import AttrValue, Dim, Op, TensorType, Value
from tidemill.ir.rules import output_types
from tidemill.ir.storage import Array
from tidemill.ops.batch import Batch, Numerics
from tidemill.ops.interpreter import run_op
from tidemill.ops.table import OPS

DEFAULT_NUMERICS = Numerics()


def tensor(dtype: str, *shape: Dim) -> TensorType:
    return TensorType(DType(dtype), shape)


def make_op(
    kind: str, types: Sequence[TensorType], attrs: Mapping[str, AttrValue] | None = None
) -> Op:
    """Make an op of layer 0 with typed operands; its rule types the outputs."""
    attrs = attrs or {}
    outputs = output_types(OPS[kind], types, attrs)
    return Op(
        kind,
        tuple(Value(f"in{index}", each) for index, each in enumerate(types)),
        tuple(Value(f"out{index}", each) for index, each in enumerate(outputs)),
        attrs,
        layer=0,
    )


def run(
    op: Op, *operands: Array, batch: Batch | None = None, numerics: Numerics = DEFAULT_NUMERICS
) -> Array:
    """Run an op's reference; return its one output."""
    (output,) = run_op(op, list(operands), batch or Batch((0,), ()), numerics)
    return output
