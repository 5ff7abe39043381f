"""Brings a checkpoint's tensors into a graph as lazy constants.

In: a pen, a source of tensors by the checkpoint's global names, the graph's weight type. Out:
constants, whose bytes are read (and converted, where stored otherwise) only when asked. Matrices
take the graph's weight type; norm weights and biases are f32. A finite value that is too large for
its type is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tidemill.base.dtypes import DType
from tidemill.checkpoint.dtype_conversion import convert_floats
from tidemill.ir.builder import GraphBuilder
from tidemill.ir.graph import TensorType, Value
from tidemill.ir.storage import Array


class TensorSource(Protocol):
    """Whole tensors in storage type (bf16 as uint16 bits), by the checkpoint's global names."""

    def read(self, name: str) -> Array: ...

    def dtype(self, name: str) -> DType: ...


@dataclass(frozen=True)
class Weights:
    """The tensors of one model, and the pen that draws them. `dtype` is that of matrices."""

    pen: GraphBuilder
    tensors: TensorSource
    dtype: DType

    def matrix(self, source: str, rows: int, columns: int) -> Value:
        """Draw a weight matrix [rows, columns]; quantised if the checkpoint has it so."""
        stored = self.tensors.dtype(source)
        dtype = stored if stored.is_quantized else self.dtype
        return self._constant(source, TensorType(dtype, (rows, columns)))

    def vector(self, source: str, size: int) -> Value:
        """Draw a norm weight or a bias, in f32."""
        return self._constant(source, TensorType(DType.F32, (size,)))

    def _constant(self, source: str, value_type: TensorType) -> Value:
        def load() -> Array:
            stored = self.tensors.read(source)
            return convert_floats(stored, self.tensors.dtype(source), value_type.dtype, source)

        name = source.removeprefix("transformer.")
        return self.pen.constant(name, value_type, load, source=source)
