"""Lazy tensors of a GGUF file, dequantised when read.

In: a path. Out: names, shapes, types, and arrays: float types as stored, quantised ones as
float32 by the reference dequantisers of the `gguf` package. Does not know what the tensors are
for, nor that llama.cpp permutes some of their rows.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from tidemill.base.dtypes import DType
from tidemill.base.errors import UnsupportedError
from tidemill.checkpoint.file_bytes import Array
from tidemill.checkpoint.gguf_file import GgufFile, GgufTensor

_Encoding = GGMLQuantizationType

_ENCODING_TO_DTYPE = {
    _Encoding.F32: DType.F32,
    _Encoding.F16: DType.F16,
    _Encoding.BF16: DType.BF16,
}
_DEQUANTIZED = frozenset(
    {
        _Encoding.Q8_0, _Encoding.Q4_0, _Encoding.Q4_1, _Encoding.Q5_0, _Encoding.Q5_1,
        _Encoding.Q2_K, _Encoding.Q3_K, _Encoding.Q4_K, _Encoding.Q5_K, _Encoding.Q6_K,
    }
)  # fmt: skip


class GgufSource:
    """The tensors of one GGUF file."""

    def __init__(self, path: Path) -> None:
        self.file = GgufFile(path)
        supported = _DEQUANTIZED | set(_ENCODING_TO_DTYPE)
        refused = Counter(
            tensor.encoding.name
            for tensor in self.file.tensors.values()
            if tensor.encoding not in supported
        )
        if refused:
            raise UnsupportedError(
                "tensor encoding is not supported",
                where=str(path),
                expected=", ".join(sorted(encoding.name for encoding in supported)),
                got=", ".join(f"{name} ({count} tensors)" for name, count in refused.items()),
                hint="use another file of this model, such as Q8_0, Q4_K_M or BF16",
            )

    def names(self) -> list[str]:
        return list(self.file.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.file.tensors[name].shape

    def dtype(self, name: str) -> DType:
        """Return the type that `read` gives: float32 for quantised tensors."""
        return _ENCODING_TO_DTYPE.get(self.file.tensors[name].encoding, DType.F32)

    def read(self, name: str) -> Array:
        """Read a whole tensor in storage type."""
        tensor = self.file.tensors[name]
        rows = self._read_flat_rows(tensor, 0, prod(tensor.shape[:-1]))
        return rows.reshape(tensor.shape)

    def has_cheap_rows(self, name: str) -> bool:
        return name in self.file.tensors

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Read rows [start, stop) of dimension 0."""
        tensor = self.file.tensors[name]
        if len(tensor.shape) == 1:
            return self.read(name)[start:stop]
        inner = prod(tensor.shape[1:-1])
        rows = self._read_flat_rows(tensor, start * inner, stop * inner)
        return rows.reshape(stop - start, *tensor.shape[1:])

    def dominant_dtype(self) -> DType:
        """Return the type most weights have; bfloat16 when any of them is quantised."""
        matrices = [t for t in self.file.tensors.values() if len(t.shape) > 1]
        if any(tensor.encoding in _DEQUANTIZED for tensor in matrices):
            return DType.BF16
        elements: Counter[DType] = Counter()
        for tensor in matrices:
            elements[_ENCODING_TO_DTYPE[tensor.encoding]] += prod(tensor.shape)
        return elements.most_common(1)[0][0] if elements else DType.F32

    def _read_flat_rows(self, tensor: GgufTensor, start: int, stop: int) -> Array:
        offset_bytes = tensor.offset_bytes + start * tensor.row_bytes
        dtype = _ENCODING_TO_DTYPE.get(tensor.encoding)
        if dtype is not None:
            shape = (stop - start, tensor.shape[-1])
            return self.file.bytes.read(offset_bytes, shape, dtype.storage_name)
        packed = self.file.bytes.read(offset_bytes, (stop - start, tensor.row_bytes), "uint8")
        return np.asarray(dequantize(packed, tensor.encoding), dtype=np.float32)
