"""The calling convention of native ops: a record of 64-bit words, a thread and the team's size.

Word 0 of a record is the kernel's address; the operands follow in the order of the kernel's
`fields`. A kernel is called by every thread of the team with the same record and decides itself
which part of the work is its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tidemill.base.abi import MOST_COPIED_ROWS, RECORD_MADE_COPIES, RECORD_READ_COPIES
from tidemill.codegen.emitter import Function, Pointer, Value
from tidemill.codegen.module import Module
from tidemill.codegen.types import I64, PTR, Type

T = TypeVar("T")


@dataclass(frozen=True)
class Kernel:
    """A finished kernel: its symbol and the names of its operands in record order."""

    symbol: str
    fields: tuple[str, ...]

    def in_order(self, operands: Mapping[str, T]) -> tuple[T, ...]:
        """The operands as a record has them, behind the kernel's address."""
        assert set(operands) == set(self.fields), (self.symbol, sorted(operands), self.fields)
        return tuple(operands[field] for field in self.fields)


@dataclass(frozen=True)
class Frame:
    """A kernel's body under construction: the function and what the record holds."""

    f: Function
    record: Pointer
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

    def made_rows(self) -> tuple[Value, Value, Value]:
        """The rows [first, last) that this thread makes, and how much further on it leaves them.

        They are its share; or all of few, in a copy of its own, so that nobody waits for them.
        """
        rows, none = self.count("rows"), self.f.constant(0, I64)
        are_copied = are_rows_copied(self.record, RECORD_MADE_COPIES, rows, self.num_threads)
        first, last = self.share(rows)
        first, last = self.f.select(are_copied, none, first), self.f.select(are_copied, rows, last)
        return first, last, self.f.select(are_copied, self.thread * rows, none)

    def first_read_row(self, rows: Value) -> Value:
        """Where the rows that this thread reads begin: behind the copies of those before it."""
        are_copied = are_rows_copied(self.record, RECORD_READ_COPIES, rows, self.num_threads)
        return self.f.select(are_copied, self.thread * rows, self.f.constant(0, I64))


def are_rows_copied(record: Pointer, word: int, rows: Value, num_threads: Value) -> Value:
    """Whether each thread has its own copy of a step's rows, made or read by a record's op."""
    return (rows <= MOST_COPIED_ROWS) & (rows * num_threads <= record[word])


def open_kernel(module: Module, symbol: str, fields: Sequence[str]) -> tuple[Kernel, Frame]:
    """Begin a kernel; the caller emits its body into the frame's function."""
    assert len(fields) < RECORD_READ_COPIES, symbol
    f = module.function(symbol, exported=True, record=PTR, thread=I64, num_threads=I64)
    record, thread, num_threads = f.args
    words = record.as_pointer(I64)
    operands = {name: words[i + 1] for i, name in enumerate(fields)}
    return Kernel(symbol, tuple(fields)), Frame(f, words, operands, thread, num_threads)
