"""Fetches the cache that the next attention reads, while a linear layer multiplies.

With many rows a linear layer waits for its dot products, and attention for memory. So units of the
layers before an attention fetch pieces, one listed block's keys or values of all heads: a unit's
tile asks for its piece line by line, into the second cache; what does not fit there waits in the
third. A thread's pieces are those of the share of attention's items that it will take itself, as
cores need not have a cache in common, and they are spread over its units, so that what is asked for
at once stays under what memory gives. Nothing is computed from what is fetched: a list that is too
long, or empty, changes speed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.kernel import Frame
from tidemill.codegen.types import F32, I32, I64

FIELDS = ("blocks", "num_blocks", "k", "v", "block_bytes", "fetch_from", "fetch_to")
STEP_BITS = 8  # of fraction in a stride: addresses of user space leave more bits free than that
ALL_PIECES = 1024  # `fetch_from` and `fetch_to` are parts of it: a layer's part of each share


@dataclass(frozen=True)
class ThreadUnits:
    """A thread's units of a layer, [first, last), and its pieces of the cache for them."""

    first_unit: Value
    num_units: Value
    first_piece: Value
    num_pieces: Value

    @staticmethod
    def of(frame: Frame, first: Value, last: Value) -> ThreadUnits:
        """Give the thread's units this layer's part of its share of the list."""
        begin, end = frame.share(frame.count("num_blocks"))
        low, high = (
            frame.integer(part) * (end - begin) * 2 // ALL_PIECES
            for part in ("fetch_from", "fetch_to")
        )
        return ThreadUnits(first, last - first, begin * 2 + low, high - low)

    def piece(self, frame: Frame, unit: Value, w: Pointer, step: int) -> tuple[Pointer, Value]:
        """Return where the unit's piece begins, and `step`: bytes, with `STEP_BITS` of fraction.

        A unit fetches one piece or none: then it asks for the weights' first line, which is there.
        """
        f, index = frame.f, unit - self.first_unit
        before, after = (each * self.num_pieces // self.num_units for each in (index, index + 1))
        address, stride = f.registers(I64), f.registers(I64)
        address[0], stride[0] = w.to_address(), 0
        with f.when(before < after):
            piece = self.first_piece + before
            block = frame.pointer("blocks", I32)[piece // 2].to(I64)
            keys, values = (frame.pointer(name, F32) for name in ("k", "v"))
            part = f.select((piece % 2).eq(0), keys, values).as_pointer(F32)
            address[0] = part.bytes(block * frame.integer("block_bytes")).to_address()
            stride[0] = step
        return address[0].as_pointer(F32), stride[0]
