"""The calling convention of native ops: a record of 64-bit words, a thread and the team's size.

Word 0 of a record is the kernel's address; the operands follow in the order of the kernel's
`fields`. A kernel is called by every thread of the team with the same record and decides itself
which part of the work is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill.base.abi import RECORD_WORDS
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.module import Module
from tidemill.codegen.types import I64, PTR, Type


@dataclass(frozen=True)
class Kernel:
    """A finished kernel: its symbol and the names of its operands in record order."""

    symbol: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Frame:
    """A kernel's body under construction: the function and what the record holds."""

    f: Function
    operands: dict[str, Value]
    thread: Value
    num_threads: Value

    def pointer(self, name: str, element: Type) -> Pointer:
        return self.operands[name].as_pointer(element)

    def integer(self, name: str) -> Value:
        return self.operands[name]

    def count(self, name: str) -> Value:
        """A run-time count: the operand is the address of an i64."""
        return self.pointer(name, I64)[0]

    def share(self, total: Value) -> tuple[Value, Value]:
        """This thread's contiguous part [first, last) of `total` pieces."""
        first = (self.thread * total) // self.num_threads
        last = ((self.thread + 1) * total) // self.num_threads
        return first, last


def open_kernel(module: Module, symbol: str, fields: Sequence[str]) -> tuple[Kernel, Frame]:
    """Begin a kernel; the caller emits its body into the frame's function."""
    assert len(fields) < RECORD_WORDS, symbol
    f = module.function(symbol, exported=True, record=PTR, thread=I64, num_threads=I64)
    record, thread, num_threads = f.args
    words = record.as_pointer(I64)
    operands = {name: words[i + 1] for i, name in enumerate(fields)}
    return Kernel(symbol, tuple(fields)), Frame(f, operands, thread, num_threads)
