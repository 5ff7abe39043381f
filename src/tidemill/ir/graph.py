"""The graph: a flat list of ops over typed values, as plain data.

Grammar, in order of introduction: `TensorType` (element type and shape), `Value` (a name with a
type), `Constant` (a value whose bytes come later, from a lazy source), `Op` (kind, inputs,
outputs, attributes), `Graph` (inputs, constants, ops in execution order, outputs). A dimension is
an int or a symbol: "T" packed tokens, "S" sequences, "L" rows whose logits are wanted. What an op
means is its row in the table of `ops`; this module knows no op by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tidemill.base.dtypes import DType

Dim = int | str
AttrValue = int | float | str | bool


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a value."""

    dtype: DType
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.dtype.value}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Value:
    """A named tensor: defined once, by a graph input, a constant or an op."""

    name: str
    type: TensorType

    def __str__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True)
class Constant:
    """A value known at build time. `load` returns its array in storage type, when asked.

    `source` is the checkpoint's name of the tensor, or "" for computed tables.
    """

    value: Value
    source: str = ""
    load: Callable[[], npt.NDArray[np.generic]] | None = field(
        default=None, compare=False, repr=False
    )


@dataclass(frozen=True)
class Op:
    """One step of the graph. `layer` is the model's layer index, or -1 outside of the layers."""

    kind: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)
    layer: int = -1


@dataclass(frozen=True)
class Graph:
    """A whole model for one rank."""

    name: str
    inputs: tuple[Value, ...]
    constants: tuple[Constant, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Value, ...]
