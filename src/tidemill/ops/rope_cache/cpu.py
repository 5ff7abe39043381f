"""Rotary embedding and cache write on the CPU, token by token.

Legend: T tokens over threads, N query heads, H head width, R rotated width. Rotated queries are
scaled and stored as activations; rotated keys and plain values go to the token's slot of the
paged cache (slot = block * tokens_per_block + offset). f32 arithmetic, rounded once. Two tokens
of a pair share a word of V: the masked store touches only its own half, so neighbours on other
threads are safe.
Values are stored finite (beyond the cache type's range: its largest number). Attention multiplies
what a block's former owner left behind by zero, and an infinity there would spoil another request.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES, Isa
from tidemill.codegen.kernel import Frame, Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import BOOL, F32, I8, I16, I32, I64, Type
from tidemill.ops.cpu_elements import ELEMENT, store_f32
from tidemill.ops.layout import CacheLayout, activation_row, wide_row
from tidemill.ops.rope_cache import LOG2_E
from tidemill.ops.rope_cache.rounded_head import RoundedHead

FIELDS = ("rows", "qkv", "positions", "slots", "cos", "sin", "q", "k", "v")


@dataclass(frozen=True)
class RopeCacheKernel:
    """Shapes of one model's heads."""

    isa: Isa
    activation: DType
    num_heads: int
    rotary_dim: int
    scale: float
    cache: CacheLayout

    def emit(self, module: Module, symbol: str) -> Kernel:
        """Emit the kernel."""
        kernel, frame = open_kernel(module, symbol, FIELDS)
        f, cache, width = frame.f, self.cache, self.cache.head_size
        row = wide_row((self.num_heads + 2 * cache.num_kv_heads) * width)
        q_row = activation_row(self.num_heads * width, self.activation)
        scratch = f.stack(F32, width)
        first, last = frame.share(frame.count("rows"))
        with f.loop(first, last) as t:
            position = frame.pointer("positions", I32)[t].to(I64)
            angles = [
                frame.pointer(name, F32).at(position * (self.rotary_dim // 2))
                for name in ("cos", "sin")
            ]
            qkv = frame.pointer("qkv", F32).at(t * row)
            q = frame.pointer("q", F32).bytes(t * (q_row * self.activation.itemsize_bytes))
            with f.loop(0, self.num_heads) as n:
                self._rotate(qkv.at(n * width), angles, scratch)
                self._store_query(scratch, q.bytes(n * (width * self.activation.itemsize_bytes)))
            k, v, slot = self._slot(frame, t)
            keys = qkv.at(self.num_heads * width)
            with f.loop(0, cache.num_kv_heads) as n:
                self._rotate(keys.at(n * width), angles, scratch)
                self._store_key(scratch, k.bytes(n * cache.head_bytes), slot)
                values = keys.at((n + cache.num_kv_heads) * width)
                self._store_value(values, v.bytes(n * cache.head_bytes), slot)
        return kernel

    def _slot(self, frame: Frame, t: Value) -> tuple[Pointer, Pointer, Value]:
        """The block's K and V, and the token's place within the block."""
        cache, slot = self.cache, frame.pointer("slots", I32)[t].to(I64)
        offset = (slot // cache.tokens_per_block) * cache.block_bytes
        k, v = (frame.pointer(name, F32).bytes(offset) for name in ("k", "v"))
        return k, v, slot % cache.tokens_per_block

    def _rotate(self, head: Pointer, angles: list[Pointer], out: Pointer) -> None:
        """out = the head with its first rotary_dim elements rotated, in half-split order."""
        half = self.rotary_dim // 2
        lanes = gcd(half, LANES)
        cos, sin = angles
        for i in range(0, half, lanes):
            low, high = head.vec(i, lanes), head.vec(half + i, lanes)
            c, s = cos.vec(i, lanes), sin.vec(i, lanes)
            out.put(i, low * c - high * s)
            out.put(half + i, high * c + low * s)
        rest = self.cache.head_size - self.rotary_dim
        lanes = gcd(rest, LANES)
        for i in range(self.rotary_dim, self.cache.head_size, max(lanes, 1)):
            out.put(i, head.vec(i, lanes))

    def _store_query(self, head: Pointer, q: Pointer) -> None:
        factor = self.scale * LOG2_E
        for i in range(0, self.cache.head_size, LANES):
            to = q.bytes(i * self.activation.itemsize_bytes)
            store_f32(self.isa, to, 0, head.vec(i, LANES) * factor, self.activation)

    def _store_key(self, head: Pointer, k: Pointer, slot: Value) -> None:
        """Scatter words of `step` dimensions, one cache row of tokens apart."""
        cache = self.cache
        keys = RoundedHead(self.isa, cache.dtype, head, cache.head_size, is_finite=False)
        word_type = self._word_type
        words = LANES // cache.step
        to = k.of(word_type).at(slot)
        for i in range(0, cache.head_size, LANES):
            vector = keys.lanes(i).bits_as(word_type.x(words))
            for lane in range(words):
                to[(i // cache.step + lane) * cache.tokens_per_block] = vector.lane(lane)
        self._store_scale(keys, k, slot)

    def _store_value(self, head: Pointer, v: Pointer, slot: Value) -> None:
        cache, f = self.cache, head.f
        values = RoundedHead(self.isa, cache.dtype, head, cache.head_size, is_finite=True)
        self._store_scale(values, v, slot)
        if cache.step == 1:
            to = v.bytes(slot * (cache.head_size * cache.dtype.itemsize_bytes))
            for i in range(0, cache.head_size, LANES):
                to.of(self._word_type).put(i, values.lanes(i))
            return
        odd = (slot & 1).eq(1)
        lanes = 2 * LANES
        odd_lanes = f.table([i % 2 for i in range(lanes)], BOOL)
        even_lanes = f.table([1 - i % 2 for i in range(lanes)], BOOL)
        mask = f.select(odd, odd_lanes, even_lanes)
        word_type, half_bits = self._word_type, 8 * cache.dtype.itemsize_bytes
        to = v.of(word_type).at((slot >> 1) * cache.head_size)
        for i in range(0, cache.head_size, LANES):
            element = values.lanes(i)
            bits = element.to(word_type, signed=False)
            both = (bits | (bits << half_bits)).bits_as(element.type.x(lanes))
            f.masked_store(both, to.at(i), mask)

    def _store_scale(self, head: RoundedHead, block: Pointer, slot: Value) -> None:
        if head.scale is not None:
            block.bytes(self.cache.scales_at).of(F32)[slot] = head.scale

    @property
    def _word_type(self) -> Type:
        """What holds `step` elements."""
        if self.cache.step == 2:
            return {2: I16, 4: I32}[self.cache.word_bytes]
        return I8 if self.cache.dtype.is_quantized else ELEMENT[self.cache.dtype]
