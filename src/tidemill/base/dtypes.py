"""Element types: one name for each, its width, and its spelling in every format we meet.

Knows nothing of arrays or files. bf16 and fp8 have no NumPy type; they are carried as raw uint16
and uint8 bits, and widened where they are computed with. A quantised type carries the scales of
each row beside the row's elements, as raw bytes: q8 is a row of int8 and one f32 scale, f8 the
same of fp8 e4m3; q4g64 has groups of 64 nibbles, each after its f16 scale and f16 offset (value =
scale * nibble - offset); q4s64 has a scale alone (value = scale * (nibble - 8)). bf12 is bf16,
whose weights an engine keeps in 12 bits each without loss (ops/layout.py).
"""

from __future__ import annotations

from enum import Enum


class DType(Enum):
    """An element type; the value is the name used in our text forms and manifests."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    BF12 = "bf12"
    I8 = "i8"
    U8 = "u8"
    I32 = "i32"
    I64 = "i64"
    Q8 = "q8"
    F8 = "f8"
    Q4G32 = "q4g32"
    Q4G64 = "q4g64"
    Q4G128 = "q4g128"
    Q4S32 = "q4s32"
    Q4S64 = "q4s64"
    Q4S128 = "q4s128"

    @property
    def itemsize_bytes(self) -> int:
        return _STORAGE_BYTES[self.storage_name]

    @property
    def storage_name(self) -> str:
        """Name of the NumPy type that carries the raw bits (bf16 travels as uint16)."""
        return _STORAGE_NAME[self]

    @property
    def is_float(self) -> bool:
        """Whether elements stand for real numbers, as they are or with scales."""
        return self in (DType.F32, DType.F16, DType.BF16, DType.BF12) or self.is_quantized

    @property
    def is_quantized(self) -> bool:
        """Whether rows carry scales of their own."""
        return self in _SCALED_ROWS or self.group_size > 0

    @property
    def is_coded(self) -> bool:
        """Whether an engine's weights are taken apart before they multiply."""
        return self.is_quantized or self is DType.BF12

    @property
    def group_size(self) -> int:
        """Elements of a row that share a scale; 0 where nothing is grouped."""
        return _GROUP_SIZE.get(self, 0)

    @property
    def has_offsets(self) -> bool:
        """Whether each group has an offset of its own beside its scale."""
        return self in _WITH_OFFSETS

    @property
    def group_header_bytes(self) -> int:
        """Bytes of f16 scale, and f16 offset where there is one, before a group's nibbles."""
        return 4 if self.has_offsets else 2

    def row_bytes(self, columns: int) -> int:
        """Bytes of a stored row of so many elements, scales included."""
        if self.group_size:
            return columns // self.group_size * (self.group_header_bytes + self.group_size // 2)
        if self is DType.BF12:
            return columns * 3 // 2
        scales = SCALE_BYTES if self in _SCALED_ROWS else 0
        return columns * self.itemsize_bytes + scales


_STORAGE_NAME = {
    DType.F32: "float32", DType.F16: "float16", DType.BF16: "uint16", DType.BF12: "uint16",
    DType.I8: "int8", DType.U8: "uint8", DType.I32: "int32", DType.I64: "int64",
    DType.Q8: "uint8", DType.F8: "uint8", DType.Q4G32: "uint8", DType.Q4G64: "uint8",
    DType.Q4G128: "uint8", DType.Q4S32: "uint8", DType.Q4S64: "uint8", DType.Q4S128: "uint8",
}  # fmt: skip
_STORAGE_BYTES = {
    "float32": 4, "float16": 2, "uint16": 2, "int8": 1, "uint8": 1, "int32": 4, "int64": 8,
}  # fmt: skip
_GROUP_SIZE = {
    DType.Q4G32: 32, DType.Q4G64: 64, DType.Q4G128: 128,
    DType.Q4S32: 32, DType.Q4S64: 64, DType.Q4S128: 128,
}  # fmt: skip
_WITH_OFFSETS = (DType.Q4G32, DType.Q4G64, DType.Q4G128)
_SCALED_ROWS = (DType.Q8, DType.F8)
SCALE_BYTES = 4  # of the f32 behind a row of q8 or f8

SAFETENSORS_TO_DTYPE = {
    "F32": DType.F32, "F16": DType.F16, "BF16": DType.BF16, "I8": DType.I8,
    "F8_E4M3": DType.U8,  # raw bits: the scales that give them a meaning are other tensors
    "U8": DType.U8,
    "I32": DType.I32, "I64": DType.I64,
}  # fmt: skip
DTYPE_TO_SAFETENSORS = {
    **{dtype: name for name, dtype in SAFETENSORS_TO_DTYPE.items()},
    DType.U8: "U8",  # of the two names that are read as u8, the one that claims no meaning
}

TRTLLM_TO_DTYPE = {"float32": DType.F32, "float16": DType.F16, "bfloat16": DType.BF16}
DTYPE_TO_TRTLLM = {dtype: name for name, dtype in TRTLLM_TO_DTYPE.items()}
