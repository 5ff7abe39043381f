"""What every source of tensors offers: names, shapes, types, and arrays read on demand.

`SafetensorsSource` and `GgufSource` are the two that read files; a renamed view for custom
checkpoints is in `custom_source`. Arrays come in storage type: bfloat16 as uint16 bits.
"""

from __future__ import annotations

from typing import Protocol

from tidemill.base.dtypes import DType
from tidemill.checkpoint.file_bytes import Array
from tidemill.checkpoint.gguf_source import GgufSource
from tidemill.checkpoint.safetensors_source import SafetensorsSource

__all__ = ["GgufSource", "SafetensorsSource", "TensorSource"]


class TensorSource(Protocol):
    """A set of named tensors, none of which is in memory until it is read."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> DType: ...

    def read(self, name: str) -> Array:
        """Read a whole tensor in storage type."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Read rows [start, stop) of dimension 0 in storage type."""
        ...

    def has_cheap_rows(self, name: str) -> bool:
        """Say whether `read_rows` costs no more than the rows it returns."""
        ...
