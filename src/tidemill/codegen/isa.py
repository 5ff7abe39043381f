"""What the targets differ in, as the kernels see it: dot products, tiles, pause and futex.

Kernels are written once, in vectors of 16 floats; LLVM splits them where registers are narrower.
An `Isa` says which instruction multiplies a pair of bf16 values, how many register tile rows pay,
and how to reach the operating system without a C library.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.target import Target
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.types import BF16, F32, I16, I32, I64

LANES = 16
V = F32.x(LANES)


@dataclass(frozen=True)
class Isa:
    """One target's choices.

    `tile_rows` is the most rows of a linear layer's register tile, two vectors wide;
    `attention_rows` the most rows of an attention tile, four vectors wide.
    """

    target: Target
    has_bf16_dot: bool
    has_f16: bool
    vector_bits: int
    tile_rows: int
    attention_rows: int

    def dot_pair(self, acc: Value, w_pairs: Value, x_pairs: Value) -> Value:
        """acc[16 f32] += sum over a pair of bf16 products; operands are 16 pairs in i32 lanes."""
        f = acc.f
        if self.has_bf16_dot:
            return f.intrinsic(
                "llvm.x86.avx512bf16.dpbf16ps.512", acc.type, acc,
                w_pairs.bits_as(BF16.x(2 * LANES)), x_pairs.bits_as(BF16.x(2 * LANES)),
            )  # fmt: skip
        even = (w_pairs << 16).bits_as(V).fma((x_pairs << 16).bits_as(V), acc)
        high = f.constant(-65536, I32.x(LANES))
        return (w_pairs & high).bits_as(V).fma((x_pairs & high).bits_as(V), even)

    def to_bf16(self, value: Value) -> Value:
        """Round f32 lanes to bf16 bits in i16 lanes, to nearest even."""
        lanes = value.type.lanes
        if self.has_bf16_dot:
            return value.to(BF16).bits_as(I16.x(lanes))
        bits = value.bits_as(I32.x(lanes))
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(I16)

    def pause(self, f: Function) -> None:
        if self.target.arch == "x86_64":
            f.intrinsic_void("llvm.x86.sse2.pause")
        else:
            yield_hint = f.constant(1, I32)
            f.intrinsic_void("llvm.aarch64.hint", yield_hint)

    def futex(
        self, f: Function, syscall: Value, word: Pointer, operation: int, value: Value
    ) -> None:
        """Make the futex system call on the low 32 bits of `word`.

        `syscall` is the C library's function of that name, whose address the context brings: code
        that calls it through a pointer needs no linker.
        """
        number = 202 if self.target.arch == "x86_64" else 98
        args = [f"i64 {number}", word.typed, f"i64 {operation}", value.typed]
        args += ["i64 0", "i64 0", "i64 0"]
        f.op(f"call i64 (i64, ...) {syscall}({', '.join(args)})", I64)


def isa_for(target: Target) -> Isa:
    """Choose by the target's name; the tile sizes are those that keep all sums in registers."""
    if target.name == "x86-64-v4-bf16":
        return Isa(target, True, True, 512, tile_rows=14, attention_rows=6)
    if target.name == "x86-64-v4":
        return Isa(target, False, True, 512, tile_rows=12, attention_rows=6)
    if target.name == "x86-64-v3":
        return Isa(target, False, True, 256, tile_rows=2, attention_rows=1)
    return Isa(target, False, True, 128, tile_rows=2, attention_rows=1)
