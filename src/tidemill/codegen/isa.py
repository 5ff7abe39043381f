"""What the targets differ in, as the kernels see it: dot products, tiles, pause and futex.

Kernels are written once, in vectors of 16 floats; LLVM splits them where registers are narrower.
An `Isa` says which instruction multiplies a pair of bf16 values, how many register tile rows pay,
and how to reach the operating system without a C library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tidemill.base.target import Target
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.types import BF16, F32, I8, I16, I32, I64

LANES = 16
V = F32.x(LANES)
_MXCSR_DEFAULT = 0x1F80  # rounding to nearest, no exceptions, no flushing
_SIGN_BITS = -0x7F7F7F80  # of the four bytes of a word: 0x80808080


@dataclass(frozen=True)
class Isa:
    """One target's choices.

    `tile_rows` is the most rows of a linear layer's register tile, two vectors wide;
    `attention_rows` the most rows of an attention tile, four vectors wide.
    """

    target: Target
    has_bf16_dot: bool
    has_int8_dot: bool
    vector_bits: int
    tile_rows: int
    attention_rows: int

    @property
    def has_mixed_dot(self) -> bool:
        """Whether aarch64 multiplies unsigned by signed bytes."""
        return "i8mm" in self.target.required

    @property
    def has_scale(self) -> bool:
        """Whether one instruction multiplies by powers of two, whatever they are."""
        return self.target.arch == "x86_64" and self.vector_bits == 512

    def scale(self, value: Value, exponent: Value) -> Value:
        """value * 2 ** exponent for 16 whole exponents; beyond f32 it is infinity or 0."""
        f, all_lanes, as_rounded = value.f, value.f.constant(-1, I16), value.f.constant(4, I32)
        name = "llvm.x86.avx512.mask.scalef.ps.512"
        return f.intrinsic(name, V, value, exponent, f.zero(V), all_lanes, as_rounded)

    def dot_pair(self, acc: Value, w_pairs: Value, x_pairs: Value) -> Value:
        """acc[16 f32] += sum over a pair of bf16 products; operands are 16 pairs in i32 lanes."""
        f = acc.f
        if self.has_bf16_dot:
            is_x86 = self.target.arch == "x86_64"
            name = "x86.avx512bf16.dpbf16ps.512" if is_x86 else "aarch64.neon.bfdot.v4f32.v8bf16"
            return _in_parts(_bf16_dot, name, 16 if is_x86 else 4, acc, w_pairs, x_pairs)
        even = (w_pairs << 16).bits_as(V).fma((x_pairs << 16).bits_as(V), acc)
        high = f.constant(-65536, I32.x(LANES))
        return (w_pairs & high).bits_as(V).fma((x_pairs & high).bits_as(V), even)

    def dot_quad(self, acc: Value, w_quads: Value, x_quads: Value) -> Value:
        """acc[16 i32] += sum over four products of s8 weights and u8 activations, exactly.

        Operands are 16 quads in i32 lanes. Without a dot product, pairs of 16-bit products are
        summed: the 8-bit pair sum of older CPUs would saturate.
        """
        lanes = self.vector_bits // 32
        if self.has_int8_dot and self.target.arch == "x86_64":
            name = f"x86.avx512.vpdpbusd.{self.vector_bits}"
            return _in_parts(_byte_dot, name, lanes, acc, x_quads, w_quads)
        if self.has_mixed_dot:
            name = "aarch64.neon.usdot.v4i32.v16i8"
            return _in_parts(_byte_dot, name, lanes, acc, x_quads, w_quads)
        if self.has_int8_dot:
            # Both operands are signed here: x less 128, and 128 times w, which all rows share.
            name = "aarch64.neon.sdot.v4i32.v16i8"
            least = acc.f.constant(_SIGN_BITS, acc.type)
            shift = _in_parts(_byte_dot, name, lanes, acc.f.zero(acc.type), least, w_quads)
            return _in_parts(_byte_dot, name, lanes, acc, x_quads ^ _SIGN_BITS, w_quads) - shift
        w_even, w_odd = _signed_bytes(w_quads)
        x_even, x_odd = x_quads & 0x00FF00FF, (x_quads >> 8) & 0x00FF00FF
        if self.target.arch != "x86_64":
            return acc + _sum_of_products(w_even, x_even) + _sum_of_products(w_odd, x_odd)
        name = "x86.avx512.pmaddw.d.512" if lanes == 16 else "x86.avx2.pmadd.wd"
        for w, x in ((w_even, x_even), (w_odd, x_odd)):
            acc = _in_parts(_pmaddwd, name, lanes, acc, w, x)
        return acc

    @property
    def has_lookup(self) -> bool:
        """Whether one instruction looks up all lanes in a vector."""
        return self.target.arch == "x86_64" and self.vector_bits == 32 * LANES

    def look_up(self, table: Value, index: Value) -> Value:
        """Lanes of a vector of 16 by the low four bits of `index`."""
        return table.f.intrinsic("llvm.x86.avx512.permvar.sf.512", table.type, table, index)

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

    @contextmanager
    def own_float_mode(self, f: Function) -> Iterator[None]:
        """Run the body with subnormal numbers as IEEE 754 has them, whatever the caller's mode.

        A library may have told its thread to take them for zero: the bits of an answer would then
        depend on which thread computed them. On aarch64 threads begin in this mode and stay in it.
        """
        if self.target.arch != "x86_64":
            yield
            return
        old, own = (f.stack(I32, 1) for _ in range(2))
        own[0] = _MXCSR_DEFAULT
        f.intrinsic_void("llvm.x86.sse.stmxcsr", old)
        f.intrinsic_void("llvm.x86.sse.ldmxcsr", own)
        yield
        f.intrinsic_void("llvm.x86.sse.ldmxcsr", old)

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


def _bf16_dot(name: str, acc: Value, w: Value, x: Value) -> Value:
    pairs = BF16.x(2 * acc.type.lanes)
    return acc.f.intrinsic("llvm." + name, acc.type, acc, w.bits_as(pairs), x.bits_as(pairs))


def _byte_dot(name: str, acc: Value, x: Value, w: Value) -> Value:
    bytes_ = I8.x(4 * acc.type.lanes)
    return acc.f.intrinsic("llvm." + name, acc.type, acc, x.bits_as(bytes_), w.bits_as(bytes_))


def _pmaddwd(name: str, acc: Value, w: Value, x: Value) -> Value:
    words = I16.x(2 * acc.type.lanes)
    return acc + acc.f.intrinsic("llvm." + name, acc.type, w.bits_as(words), x.bits_as(words))


def _in_parts(
    operate: Callable[[str, Value, Value, Value], Value],
    name: str,
    lanes: int,
    *operands: Value,
) -> Value:
    """Apply an instruction of `lanes` lanes to operands of 16."""
    if lanes == LANES:
        return operate(name, *operands)
    parts = [
        operate(name, *(each.shuffle(range(at, at + lanes)) for each in operands))
        for at in range(0, LANES, lanes)
    ]
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [low.shuffle(range(2 * low.type.lanes), high) for low, high in pairs]
    return parts[0]


def isa_for(target: Target) -> Isa:
    """Choose by the target's name; the tile sizes are those that keep all sums in registers."""
    if target.name == "x86-64-v4-bf16":
        return Isa(target, True, True, 512, tile_rows=14, attention_rows=6)
    if target.name == "x86-64-v4":
        return Isa(target, False, False, 512, tile_rows=12, attention_rows=6)
    if target.name in ("x86-64-v3", "x86-64-v3-vnni"):
        has_vnni = target.name == "x86-64-v3-vnni"
        return Isa(target, False, has_vnni, 256, tile_rows=2, attention_rows=1)
    has_bf16, has_dot = "bf16" in target.required, "asimddp" in target.required
    return Isa(target, has_bf16, has_dot, 128, tile_rows=2, attention_rows=1)
