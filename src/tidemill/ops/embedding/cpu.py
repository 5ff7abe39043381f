"""Embedding rows on the CPU, gathered from the packed panels that a tied head also reads.

One packed copy serves both, so tied weights are stored and mapped once. A row's words lie one
panel row apart; the gather costs about as many cache lines as the row has words, for the step's
tokens only. Exact: elements are widened to f32, those with scales times theirs, less an offset.
"""

from __future__ import annotations

from tidemill.base.dtypes import DType
from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES
from tidemill.codegen.kernel import Kernel, open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.types import F16, F32, I8, I32, I64
from tidemill.ops.cpu_elements import load_f32, widen_e4m3
from tidemill.ops.layout import (
    LISTED_AT,
    NOWHERE,
    PANEL,
    group_bytes,
    k_step,
    listed_inputs_at,
    most_listed,
    padded_k,
    panel_bytes,
    panel_header_bytes,
    wide_row,
)
from tidemill.ops.linear.formats_bf12 import pair_of_words
from tidemill.ops.linear.widened import HIGH_HALF

FIELDS = ("rows", "tokens", "table", "y")


def emit(module: Module, symbol: str, weight: DType, columns: int) -> Kernel:
    """Emit the gather for tables of `columns` inputs."""
    kernel, frame = open_kernel(module, symbol, FIELDS)
    f, row = frame.f, wide_row(columns)
    first, last = frame.share(frame.count("rows"))
    with f.loop(first, last) as t:
        token = frame.pointer("tokens", I32)[t].to(I64)
        y = frame.pointer("y", F32).at(t * row)
        with f.loop(0, row, LANES) as c:
            y.put(c, f.zero(F32.x(LANES)))
        panel = frame.pointer("table", F32).bytes((token // PANEL) * panel_bytes(columns, weight))
        in_panel = token % PANEL
        if weight is DType.BF12:
            _gather_bf12(panel, in_panel, columns, y)
        elif weight.group_size:
            _gather_q4(panel, in_panel, weight, columns, y)
        else:
            _gather(panel, in_panel, weight, columns, y)
    return kernel


def _gather(panel: Pointer, in_panel: Value, weight: DType, columns: int, y: Pointer) -> None:
    f, step = panel.f, k_step(weight)
    table = panel.bytes(panel_header_bytes(weight, columns))
    table = table.bytes(in_panel * step * weight.itemsize_bytes)
    with f.loop(0, padded_k(columns, weight) // step) as s:
        at = table.bytes(s * (PANEL * step * weight.itemsize_bytes))
        if weight is DType.Q8:
            words = at.of(I8).vec(0, step).to(F32) * panel[in_panel]
        elif weight is DType.F8:
            words = widen_e4m3(at.of(I8).vec(0, step).to(I32) << 24) * panel[in_panel]
        else:
            words = load_f32(at, 0, step, weight)
        y.put(s * step, words)


def _gather_q4(panel: Pointer, in_panel: Value, weight: DType, columns: int, y: Pointer) -> None:
    """Take one output's nibbles out of each group."""
    f, size, step = panel.f, weight.group_size, k_step(weight)
    groups = panel.bytes(panel_header_bytes(weight, columns))
    with f.loop(0, columns // size) as g:
        group = groups.bytes(g * group_bytes(weight))
        header = group.of(F16)
        scale = header[in_panel].to(F32)
        offset = header[in_panel + PANEL].to(F32) if weight.has_offsets else scale * 8.0
        words = group.bytes(in_panel * (step // 2) + PANEL * weight.group_header_bytes)
        with f.loop(0, size // step) as s:
            word = words.bytes(s * (PANEL * step // 2)).of(I8).vec(0, step // 2).to(I32)
            for half in range(2):
                values = ((word >> (4 * half)) & 15).to(F32) * scale - offset
                y.put(g * size + s * step + half * (step // 2), values)


def _gather_bf12(panel: Pointer, in_panel: Value, columns: int, y: Pointer) -> None:
    """Take one output's words apart, and put listed inputs in their places."""
    f, scale, step = panel.f, panel[in_panel], k_step(DType.BF12)
    step_bytes = PANEL * DType.BF12.row_bytes(step)
    vector, lane = in_panel // LANES, in_panel % LANES
    table = panel.bytes(panel_header_bytes(DType.BF12, columns)).bytes(vector * (step_bytes // 2))
    with f.loop(0, padded_k(columns, DType.BF12) // step) as s:
        at = table.bytes(s * step_bytes).of(I32).at(lane)
        words = tuple(at[i * LANES] for i in range(3))
        for part in range(step // 2):
            pair = pair_of_words(words, part)
            for i, bits in enumerate((pair << 16, pair & HIGH_HALF)):
                y[s * step + 2 * part + i] = bits.bits_as(F32) * scale

    places = panel.bytes(LISTED_AT).of(I32)
    listed = panel.bytes(listed_inputs_at(columns))
    with f.loop(0, most_listed(columns)) as entry:
        place = places[entry].to(I64)
        with f.when((place % PANEL).eq(in_panel) & place.ne(NOWHERE)):
            values = load_f32(listed, entry * step, step, DType.BF16)
            y.put((place // PANEL) * step, values * scale)
