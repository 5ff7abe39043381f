"""Types of the emitter: scalars and fixed vectors as LLVM spells them.

`F32.x(16)` is a vector of 16 lanes. Knows how a type is written and how a literal of it is
written; nothing of instructions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Type:
    """`base` is LLVM's scalar name; `kind` is "int", "float" or "ptr"."""

    base: str
    bits: int
    kind: str
    lanes: int = 1

    def x(self, lanes: int) -> Type:
        """The vector of `lanes` of this scalar."""
        return Type(self.base, self.bits, self.kind, lanes)

    @property
    def scalar(self) -> Type:
        return self.x(1)

    @property
    def size_bytes(self) -> int:
        return self.bits * self.lanes // 8

    @property
    def mangled(self) -> str:
        """Suffix in overloaded intrinsic names."""
        short = _MANGLED.get(self.base, self.base)
        return f"v{self.lanes}{short}" if self.lanes > 1 else short

    def __str__(self) -> str:
        return f"<{self.lanes} x {self.base}>" if self.lanes > 1 else self.base


_MANGLED = {"float": "f32", "bfloat": "bf16", "half": "f16", "double": "f64", "ptr": "p0"}

BOOL = Type("i1", 1, "int")
I8 = Type("i8", 8, "int")
I16 = Type("i16", 16, "int")
I32 = Type("i32", 32, "int")
I64 = Type("i64", 64, "int")
BF16 = Type("bfloat", 16, "float")
F16 = Type("half", 16, "float")
F32 = Type("float", 32, "float")
PTR = Type("ptr", 64, "ptr")


def literal(value: float, type_: Type) -> str:
    """Spell a constant; vectors are splats."""
    is_float = type_.kind == "float"
    text = _float_literal(float(value), type_) if is_float else str(int(value))
    return text if type_.lanes == 1 else f"splat ({type_.base} {text})"


def _float_literal(value: float, type_: Type) -> str:
    if type_.base == "bfloat":
        return f"0xR{struct.unpack('<I', struct.pack('<f', value))[0] >> 16:04X}"
    if type_.base == "half":
        return f"0xH{struct.unpack('<H', struct.pack('<e', value))[0]:04X}"
    if type_.base == "float":  # LLVM writes float constants as the double of the same value
        value = struct.unpack("<f", struct.pack("<f", value))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
