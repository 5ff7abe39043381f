"""What the targets differ in, as the kernels see it: dot products, tiles, pause and futex.

Kernels are written once, in vectors of 16 floats; LLVM splits them where registers are narrower.
An `Isa` says which instruction multiplies a pair of bf16 values, how many register tile rows pay,
and how to reach the operating system without a C library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill.base.target import Target
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.types import BF16, F32, I8, I16, I32, I64

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
    has_int8_dot: bool
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

    def dot_quad(self, acc: Value, w_quads: Value, x_quads: Value) -> Value:
        """acc[16 i32] += sum over four products of s8 weights and u8 activations, exactly.

        Operands are 16 quads in i32 lanes. Without a dot product, pairs of 16-bit products are
        summed: the 8-bit pair sum of older CPUs would saturate.
        """
        if self.has_int8_dot:
            lanes = 16 if self.vector_bits == 512 else 8
            name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
            return _in_parts(_vpdpbusd, name, lanes, acc, x_quads, w_quads)
        w_even, w_odd = _signed_bytes(w_quads)
        x_even, x_odd = x_quads & 0x00FF00FF, (x_quads >> 8) & 0x00FF00FF
        if self.target.arch != "x86_64":
            return acc + _sum_of_products(w_even, x_even) + _sum_of_products(w_odd, x_odd)
        lanes = 16 if self.vector_bits == 512 else 8
        name = "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd"
        for w, x in ((w_even, x_even), (w_odd, x_odd)):
            acc = _in_parts(_pmaddwd, name, lanes, acc, w, x)
        return acc

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


def _signed_bytes(quads: Value) -> tuple[Value, Value]:
    """The even and the odd bytes of i32 lanes, each as two i16 with their signs."""
    halves = quads.bits_as(I16.x(2 * quads.type.lanes))
    even, odd = (halves << 8).shift_right_signed(8), halves.shift_right_signed(8)
    return even.bits_as(quads.type), odd.bits_as(quads.type)


def _sum_of_products(w: Value, x: Value) -> Value:
    """The sum of two 16-bit products in each i32 lane."""
    low = (w << 16).shift_right_signed(16) * (x & 0xFFFF)
    return low + w.shift_right_signed(16) * (x >> 16)


def _vpdpbusd(name: str, acc: Value, x: Value, w: Value) -> Value:
    bytes_ = I8.x(4 * acc.type.lanes)
    return acc.f.intrinsic(name, acc.type, acc, x.bits_as(bytes_), w.bits_as(bytes_))


def _pmaddwd(name: str, acc: Value, w: Value, x: Value) -> Value:
    words = I16.x(2 * acc.type.lanes)
    return acc + acc.f.intrinsic(name, acc.type, w.bits_as(words), x.bits_as(words))


def _in_parts(
    operate: Callable[[str, Value, Value, Value], Value],
    name: str,
    lanes: int,
    *operands: Value,
) -> Value:
    """Apply an instruction of `lanes` lanes to operands of 16."""
    if lanes == LANES:
        return operate(name, *operands)
    low, high = (
        operate(name, *(each.shuffle(range(at, at + lanes)) for each in operands))
        for at in (0, lanes)
    )
    mask = ", ".join(f"i32 {i}" for i in range(LANES))
    joined = f"shufflevector {low.typed}, {high.typed}, <{LANES} x i32> <{mask}>"
    return low.f.op(joined, low.type.scalar.x(LANES))


def isa_for(target: Target) -> Isa:
    """Choose by the target's name; the tile sizes are those that keep all sums in registers."""
    if target.name == "x86-64-v4-bf16":
        return Isa(target, True, True, True, 512, tile_rows=14, attention_rows=6)
    if target.name == "x86-64-v4":
        return Isa(target, False, False, True, 512, tile_rows=12, attention_rows=6)
    if target.name in ("x86-64-v3", "x86-64-v3-vnni"):
        has_vnni = target.name == "x86-64-v3-vnni"
        return Isa(target, False, has_vnni, True, 256, tile_rows=2, attention_rows=1)
    return Isa(target, False, False, True, 128, tile_rows=2, attention_rows=1)
