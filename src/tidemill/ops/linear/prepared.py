"""Words that were taken apart beforehand: a panel's weights as its dot products want them.

Where several row tiles meet one panel, taking its words apart once costs less than in every tile:
the panel's first tile does it beside its own products, or a loop before it where words have groups.
Prepared words hold what `part_of_w` makes, part after part, in f32 or 32-bit lanes: [step][part][2]
[16]. A `PreparedFormat` multiplies them as its inner format would, in the same order, so that the
bits of a sum do not tell which of the two made it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.isa import LANES
from tidemill.codegen.types import F32, I32, Type
from tidemill.ops.layout import CACHE_LINE_BYTES, PANEL, padded_k
from tidemill.ops.linear.format_contract import Format, GroupedFormat
from tidemill.ops.linear.formats_q4 import Q4WidenedFormat
from tidemill.ops.linear.widened import WidenedFormat

PREFETCH_BYTES = 8192
_LANE_BYTES = 4


@dataclass(frozen=True)
class PreparedFormat(Format):
    """A coded format over prepared words."""

    inner: Format

    @property
    def name(self) -> str:
        return f"{self.inner.name}_prepared"

    @property
    def tile_rows(self) -> int:
        """All that fit where a row has its two sums: no word lies in registers beside its parts."""
        is_summing_x = isinstance(self.inner, Q4WidenedFormat) and self.inner.sums_x
        return self.inner.tile_rows if is_summing_x else self.isa.tile_rows

    @property
    def steps_a_word(self) -> int:
        return self.inner.num_parts

    @property
    def lane_type(self) -> Type:
        is_f32 = isinstance(self.inner, WidenedFormat) and not self.inner.takes_pairs
        return F32 if is_f32 else I32

    def start(self, panel: Pointer, j: int) -> Value:
        return self.inner.start(panel, j)

    def load_w(self, pointer: Pointer) -> tuple[Value, ...]:
        return (pointer.of(self.lane_type).vec(0, LANES),)

    def load_x(self, pointer: Pointer, part: int) -> Value:
        return self.inner.load_x(pointer, 0)

    def dot(self, total: Value, w: Value, x: Value) -> Value:
        return self.inner.dot(total, w, x)

    def finish(self, total: Value, panel: Pointer, j: int, x_scale: Pointer | None) -> Value:
        return self.inner.finish(total, panel, j, x_scale)


@dataclass(frozen=True)
class PreparedGroups(PreparedFormat, GroupedFormat):
    """The same for weights by group, whose headers stay where they were packed."""

    inner: GroupedFormat

    def ones(self, f: Function) -> Value | None:
        return self.inner.ones(f)

    def sum_of_x(self, summed: Value | None, x_row: Pointer, k: int, group: Value) -> Value | None:
        return self.inner.sum_of_x(summed, x_row, k, group)

    def add_group(
        self, out: Value, total: Value, header: list[Value], x_sum: Value | None
    ) -> Value:
        return self.inner.add_group(out, total, header, x_sum)


def prepared(form: Format) -> PreparedFormat | None:
    """The format's prepared form, where its words are worth taking apart."""
    if not form.weight.is_coded or form.num_parts == 1:
        return None
    types = form.isa, form.weight, form.activation
    if isinstance(form, GroupedFormat):
        return PreparedGroups(*types, form)
    return PreparedFormat(*types, form)


def prepared_bytes(k: int, weight: DType) -> int:
    """Most bytes that a prepared panel takes on any target, so that plans do not differ."""
    return padded_k(k, weight) * PANEL * _LANE_BYTES if weight.is_coded else 0


def emit_prepare(f: Function, form: PreparedFormat, words: Pointer, to: Pointer, num: int) -> None:
    """Take apart `num` steps of packed words, both vectors."""
    inner, step_bytes = form.inner, 2 * form.inner.vector_bytes
    with f.loop(0, num) as s:
        at = words.bytes(s * step_bytes)
        for offset in range(0, step_bytes, CACHE_LINE_BYTES):
            at.prefetch(PREFETCH_BYTES + offset)
        loaded = [inner.load_w(at.bytes(j * inner.vector_bytes)) for j in range(2)]
        out = to.of(form.lane_type).at(s * (inner.num_parts * PANEL))
        for part in range(inner.num_parts):
            for j, words_of_j in enumerate(loaded):
                out.put(part * PANEL + j * LANES, inner.part_of_w(words_of_j, part))
