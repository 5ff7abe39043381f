"""bf12: bf16 weights in 12 bits each, without loss, against bf16 activations.

Nearly all weights of an output have one of the 16 exponents that end at its largest's: sign, 4 bits
of exponent and 7 of mantissa say what 16 bits say. Zeros stand for themselves; the few weights that
do not fit are zeros as well, and are listed behind their panel and added at the end, in order.
Layout and numbers: ops/layout.py. Twelve bits are taken apart in registers, two inputs at a time,
or once a panel (prepared.py). Where memory is the limit, three quarters of the bytes are a third
more speed (docs/decisions/099).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES, Isa, V
from tidemill.codegen.types import I16, I32, I64, Type
from tidemill.ops.layout import BF12_BIAS, CACHE_LINE_BYTES, PANEL, listed_at

_SIGN, _MAGNITUDE = -0x8000, 0x07FF  # of an i16 lane
# Pair 3, by word: how far its bits move to the right, and where they then are.
_PIECES = ((0, 4, 0x0780), (1, 8, 0x0078), (2, 11, 0x0007), (2, -1, _SIGN))


@dataclass(frozen=True)
class Bf12Format:
    """Pairs of inputs, as a bf16 dot product takes them; sums in f32, of value / scale."""

    isa: Isa
    weight: DType = DType.BF12
    activation: DType = DType.BF16
    name: str = "bf12"
    num_parts: int = 4
    sum_type: Type = V
    vector_bytes: int = 3 * 4 * LANES
    x_step_bytes: int = 16
    has_listed: bool = True

    @property
    def tile_rows(self) -> int:
        """Two rows fewer than plain weights: three words stay in registers beside their parts."""
        return max(2, self.isa.tile_rows - 2)

    def start(self, panel: Pointer, j: int) -> Value:
        return panel.f.zero(V)

    def load_w(self, pointer: Pointer) -> tuple[Value, ...]:
        return tuple(pointer.of(I32).vec(i * LANES, LANES) for i in range(3))

    def part_of_w(self, words: tuple[Value, ...], part: int) -> Value:
        return pair_of_words(words, part)

    def load_x(self, pointer: Pointer, part: int) -> Value:
        return pointer.of(I32)[part].splat(LANES)

    def dot(self, total: Value, w: Value, x: Value) -> Value:
        return self.isa.dot_pair(total, w, x)

    def finish(self, total: Value, panel: Pointer, j: int, x_scale: Pointer | None) -> Value:
        return total * panel.vec(j * LANES, LANES)


def pair_of_words(words: tuple[Value, ...], part: int) -> Value:
    """Two inputs of each output, value / scale in bf16, in i32 lanes."""
    lanes = words[0].type
    halves = [word.bits_as(I16.x(2 * lanes.lanes)) for word in words]
    if part < len(words):
        bits = halves[part]
    else:
        pieces = [
            (halves[i] >> shift if shift > 0 else halves[i] << -shift) & mask
            for i, shift, mask in _PIECES
        ]
        bits = (pieces[0] | pieces[1]) | (pieces[2] | pieces[3])
    magnitude, f = bits & _MAGNITUDE, words[0].f
    number = (bits & (_SIGN | _MAGNITUDE)) + (BF12_BIAS << 7)
    return f.select(magnitude.ne(0), number, f.zero(number.type)).bits_as(lanes)


def for_each_listed(panel: Pointer, k: int, take: Callable[[Value, Value, Value], None]) -> None:
    """Run `take` for the input, the output in the panel and the weight / scale of each listed."""
    f, listed = panel.f, panel.bytes(listed_at(k))
    with f.loop(0, listed.of(I32)[0].to(I64)) as i:
        entry = listed.bytes(CACHE_LINE_BYTES).at(i * 2)
        place = entry.of(I32)[0].to(I64)
        take(place // PANEL, place % PANEL, entry[1])
