"""Fetches the cache that the next attention reads, while a linear layer multiplies.

With many rows a linear layer waits for its dot products, and attention for memory. So units of the
layers before an attention claim pieces, one listed block's keys or values of all heads, and a
unit's tile asks for its piece line by line, into the second cache; what does not fit there waits in
the third. Claims come from a counter that attention sets back to zero, and are spread over the
layers' units, so that what is asked for at once stays under what memory gives. Nothing is computed
from what is fetched: a list that is too long, or empty, changes speed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.kernel import Frame
from tidemill.codegen.types import F32, I32, I64

FIELDS = ("blocks", "num_blocks", "k", "v", "block_bytes", "claimed", "claims_from", "claims_to")
STEP_BITS = 8  # of fraction in a stride: addresses of user space leave more bits free than that
ALL_CLAIMS = 1024  # `claims_from` and `claims_to` are parts of it: when a layer begins, and ends


@dataclass(frozen=True)
class UnitOfThread:
    """A unit and the thread's range of units, [first, last)."""

    unit: Value
    first: Value
    last: Value


def claim_piece(frame: Frame, at: UnitOfThread, w: Pointer, step: int) -> tuple[Pointer, Value]:
    """Return where the unit's piece begins, and `step`: bytes a step, with `STEP_BITS` of fraction.

    A unit claims one piece at most, and none when the layer is ahead of its share: then it asks for
    the weights' first line, which is there, again and again.
    """
    f, claimed = frame.f, frame.pointer("claimed", I64)
    num_pieces = frame.count("num_blocks") * 2
    before, after = frame.integer("claims_from"), frame.integer("claims_to")
    num_units, done = at.last - at.first, at.unit - at.first + 1
    share = before * num_units + (after - before) * done
    due = num_pieces * share // (num_units * ALL_CLAIMS)
    address, chosen_step = f.registers(I64), f.registers(I64)
    address[0], chosen_step[0] = w.to_address(), 0
    with f.when(claimed.atomic_load("monotonic") < due):
        piece = claimed.atomic_add(1, "monotonic")
        with f.when(piece < num_pieces):
            block = frame.pointer("blocks", I32)[piece // 2].to(I64)
            keys, values = (frame.pointer(name, F32) for name in ("k", "v"))
            part = f.select((piece % 2).eq(0), keys, values).as_pointer(F32)
            address[0] = part.bytes(block * frame.integer("block_bytes")).to_address()
            chosen_step[0] = step
    return address[0].as_pointer(F32), chosen_step[0]
