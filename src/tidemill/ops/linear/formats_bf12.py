"""bf12: bf16 weights in 12 bits each, without loss, against bf16 activations.

Nearly all weights of an output have one of 16 exponents near its largest's: sign, 4 bits of
exponent and 7 of mantissa say what 16 bits say, and zeros stand for themselves. Where one of the 8
inputs of a word does not fit, the word is zeros and its inputs are in the panel's list, which lies
before its words, as every tile begins with it; a tile multiplies them when it comes by. So sums are
those of bf16 weights, bit for bit, but for the scale, a power of two. Layout and numbers:
ops/layout.py. Twelve bits are taken apart in registers, two inputs at a time, or once a panel.
Where memory is the limit, three quarters of the bytes are a third more speed (docs/decisions/099).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES
from tidemill.codegen.types import I16, I32, I64
from tidemill.ops.layout import BF12_BIAS, LISTED_AT, PANEL, listed_inputs_at
from tidemill.ops.linear.widened import WidenedFormat

_SIGN, _MAGNITUDE = -0x8000, 0x07FF  # of an i16 lane
# Pair 3, by word: how far its bits move to the right, and where they then are.
_PIECES = ((0, 4, 0x0780), (1, 8, 0x0078), (2, 11, 0x0007), (2, -1, _SIGN))


@dataclass(frozen=True)
class Bf12Format(WidenedFormat):
    """Pairs of inputs on every target, as a bf16 dot product takes them."""

    @property
    def name(self) -> str:
        return self.weight.value

    @property
    def takes_pairs(self) -> bool:
        return True

    @property
    def num_parts(self) -> int:
        return 4

    @property
    def vector_bytes(self) -> int:
        return 3 * 4 * LANES

    def load_w(self, pointer: Pointer) -> tuple[Value, ...]:
        return tuple(pointer.of(I32).vec(i * LANES, LANES) for i in range(3))

    def part_of_w(self, words: tuple[Value, ...], part: int) -> Value:
        return pair_of_words(words, part)


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


class ListedInputs:
    """A panel's list, read along with its steps."""

    def __init__(self, panel: Pointer, k: int) -> None:
        self._f = panel.f
        self._places = panel.bytes(LISTED_AT).of(I32)
        self._pairs = panel.bytes(listed_inputs_at(k)).of(I32)
        self._index, self._place = (self._f.registers(I32) for _ in range(2))
        self._index[0], self._place[0] = 0, self._places[0]

    @contextmanager
    def of_step(self, step: Value) -> Iterator[tuple[Value, list[Value]]]:
        """Run the body for each output listed for a step, with four pairs, value / scale in bf16.

        Units: the output is an i32 in the panel, from 0 to 31.
        """
        f, step = self._f, step.to(I32)
        with f.when((self._place[0] // PANEL).eq(step)), f.repeat_until() as until:
            index = self._index[0]
            at = self._pairs.at(index.to(I64) * 4)
            yield self._place[0] % PANEL, [at[i] for i in range(4)]
            self._index[0] = index + 1
            self._place[0] = self._places[(index + 1).to(I64)]
            until((self._place[0] // PANEL).ne(step))

    def vectors(self, output: Value, pair: Value) -> dict[int, Value]:
        """A pair at its output's place in the panel's two vectors, which are zero elsewhere."""
        f, lanes = self._f, self._f.table(range(LANES), I32)
        return {
            j: f.select(lanes.eq(output - j * LANES), pair.splat(LANES), f.zero(lanes.type))
            for j in range(2)
        }
