"""Fetches the cache that the next attention reads, while a linear layer multiplies.

With many rows a linear layer waits for its dot products, and attention for memory. So each unit of
the layers before an attention claims a piece, one listed block's keys or values of all heads, and
its tile asks for a line of it with every step, into the second cache; what does not fit there
waits in the third. Claims come from a counter that attention sets back to zero. Nothing is
computed from what is fetched: a list too long, or none, changes speed alone.
"""

from __future__ import annotations

from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.kernel import Frame
from tidemill.codegen.types import F32, I32, I64

FIELDS = ("blocks", "num_blocks", "k", "v", "block_bytes", "claimed")
STEP_BITS = 8  # of fraction in a stride: addresses of user space leave more bits free than that


def no_piece(w: Pointer) -> tuple[Pointer, Value]:
    """Nothing to fetch: a line that is there, again and again."""
    return w, w.f.constant(0, I64)


def claim_piece(frame: Frame, w: Pointer, num_steps: int) -> tuple[Pointer, Value]:
    """Return where the unit's piece begins, and its bytes a step with `STEP_BITS` of fraction."""
    f, claimed = frame.f, frame.pointer("claimed", I64)
    num_pieces, block_bytes = frame.count("num_blocks") * 2, frame.integer("block_bytes")
    address, step = f.registers(I64), f.registers(I64)
    address[0], step[0] = w.to_address(), 0
    with f.when(claimed.atomic_load("monotonic") < num_pieces):
        piece = claimed.atomic_add(1, "monotonic")
        with f.when(piece < num_pieces):
            block = frame.pointer("blocks", I32)[piece // 2].to(I64)
            keys, values = (frame.pointer(name, F32) for name in ("k", "v"))
            part = f.select((piece % 2).eq(0), keys, values).as_pointer(F32)
            address[0] = part.bytes(block * block_bytes).to_address()
            step[0] = (block_bytes << STEP_BITS) // num_steps
    return address[0].as_pointer(F32), step[0]
