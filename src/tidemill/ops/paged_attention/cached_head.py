"""Where keys and values lie: in the cache's blocks, or widened on the stack.

In: a sequence's block table and one key-value head, or what of it was widened. Out: pointers to
sixteen keys or values, in words of `step` elements, with the strides between words. Both views have
the same order of words, so that the tile's loops do not tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES, Isa
from tidemill.codegen.types import F32, I8, I32, I64
from tidemill.ops.cpu_elements import round_lanes, widen_e4m3
from tidemill.ops.layout import ATTENTION_CHUNK, ATTENTION_PARTITION, CacheLayout

_UNROLL = 4


class CachedHead:
    """One key-value head of the cache, seen through a sequence's block table."""

    def __init__(self, cache: CacheLayout, k: Pointer, v: Pointer, table: Pointer) -> None:
        self.cache, self.k, self.v, self.table = cache, k, v, table
        self.key_step_bytes = cache.key_step_bytes
        self.value_step_bytes = cache.head_size * cache.word_bytes
        self.word_bytes = cache.word_bytes

    def keys(self, position: Value) -> Pointer:
        """Sixteen keys from `position` on: a row of words for every `step` dimensions."""
        block, within = self._place(position)
        return self.k.bytes(block + within * self.cache.word_bytes)

    def values(self, position: Value) -> Pointer:
        """Sixteen values from `position` on: contiguous rows of words, `step` positions each."""
        block, within = self._place(position)
        return self.v.bytes(block + within * (self.value_step_bytes // self.cache.step))

    def scales(self, base: Pointer, position: Value) -> Value:
        """The scales of sixteen keys (base k) or values (base v)."""
        block, within = self._place(position)
        return base.bytes(block + within * 4).bytes(self.cache.scales_at).of(F32).vec(0, LANES)

    def _place(self, position: Value) -> tuple[Value, Value]:
        block = self.table[position // self.cache.tokens_per_block].to(I64)
        return block * self.cache.block_bytes, position % self.cache.tokens_per_block


@dataclass(frozen=True)
class WidenedPart:
    """A chunk's keys and a partition's values of an 8-bit cache, in the type computed with."""

    isa: Isa
    cache: CacheLayout
    k: Pointer
    v: Pointer
    word_bytes: int = 4
    key_step_bytes: int = 4 * ATTENTION_CHUNK

    @property
    def value_step_bytes(self) -> int:
        return self.cache.head_size * self.word_bytes

    def keys(self, at: Value) -> Pointer:
        """Sixteen keys from the chunk's position `at` on."""
        return self.k.bytes(at * self.word_bytes)

    def values(self, at: Value) -> Pointer:
        """Sixteen values from the partition's position `at` on."""
        return self.v.bytes(at * (self.value_step_bytes // self.cache.step))

    def fill(self, head: CachedHead, start: Value, columns: Value, done: Value) -> None:
        """Widen a chunk's first `columns` times sixteen positions, `done` lie before it."""
        f, words = self.k.f, self.cache.head_size // self.cache.step
        with f.loop(0, columns) as c:
            at = c * LANES
            keys, values = head.keys(start + at), head.values(start + at)
            to_keys, to_values = self.keys(at), self.values(done + at)
            with f.loop(0, words, _UNROLL) as word:
                for u in range(_UNROLL):
                    key = self._widen(keys.bytes((word + u) * head.key_step_bytes))
                    to_keys.bytes((word + u) * self.key_step_bytes).put(0, key)
                    value = self._widen(values.bytes((word + u) * (LANES * head.word_bytes)))
                    to_values.put((word + u) * LANES, value)

    def _widen(self, at: Pointer) -> Value:
        """Sixteen words as f32 lanes' bits."""
        raw = at.of(I8).vec(0, LANES * self.cache.step)
        wide = widen_e4m3(raw.to(I32) << 24) if self.cache.dtype is DType.F8 else raw.to(F32)
        return round_lanes(self.isa, wide, self.cache.compute).bits_as(F32.x(LANES))


def widened_floats(cache: CacheLayout) -> tuple[int, int]:
    """Memory of widened keys and values, in words of 32 bits."""
    each = cache.head_size // cache.step
    return ATTENTION_CHUNK * each, ATTENTION_PARTITION * each
