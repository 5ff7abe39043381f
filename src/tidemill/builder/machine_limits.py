"""The machine's own limits, measured with a team of our threads: read bandwidth and dot rates.

Loops with nothing else in them: one reads memory that no cache holds, prefetching as the linear
kernels do; two repeat the target's dot product of bf16 and of int8 on registers. Whoever times a
kernel runs these in between, since a shared machine's limits move within minutes.
"""

from __future__ import annotations

import time

import numpy as np

from tidemill.base import abi
from tidemill.base.target import host_targets
from tidemill.codegen.compile import compile_ir
from tidemill.codegen.isa import LANES, Isa, V, isa_for
from tidemill.codegen.kernel import open_kernel
from tidemill.codegen.link import link_object
from tidemill.codegen.module import Module
from tidemill.codegen.spmd import emit_team
from tidemill.codegen.types import I32
from tidemill.device.cpu import LoadedCode, Team, address_of, allocate

READ_BYTES = 256 << 20
DOT_LOOPS = 200_000
_PREFETCH_BYTES = 8192
_VECTORS_A_TURN = 8
_TURN_BYTES = _VECTORS_A_TURN * 64
_ACCUMULATORS = 20


class MachineLimits:
    """Loops that are ready to run on `num_threads`; `close` ends their threads."""

    def __init__(self, num_threads: int) -> None:
        isa = isa_for(host_targets()[0])
        module = Module()
        emit_team(module, isa)
        _emit_read(module)
        _emit_dots(module, isa, is_int8=False)
        _emit_dots(module, isa, is_int8=True)
        target = isa.target
        text = module.text(target.triple, target.cpu, target.features, isa.vector_bits)
        image = link_object(compile_ir(text, target))
        code = LoadedCode(image.data, image.entry_offsets)
        self._memory = allocate(READ_BYTES)
        self._memory[:] = 1
        self._out = np.zeros(64 * num_threads, np.float32)
        records = np.zeros((3, abi.RECORD_WORDS), np.int64)
        out = address_of(self._out)
        records[0, :4] = code.address("read"), address_of(self._memory), READ_BYTES, out
        for at, symbol in ((1, "bf16_dots"), (2, "int8_dots")):
            records[at, :4] = code.address(symbol), address_of(self._memory), DOT_LOOPS, out
        self._team = Team(code, records, num_threads)
        self._dots = float(LANES * _ACCUMULATORS * DOT_LOOPS * num_threads)

    def read_bytes_per_s(self) -> float:
        """Read all of the memory once, every thread its part."""
        return READ_BYTES / self._time_s(0)

    def dot_flops_per_s(self) -> float:
        """Multiply and add pairs of bf16 on registers, on every thread."""
        return 4 * self._dots / self._time_s(1)

    def int8_ops_per_s(self) -> float:
        """Multiply and add quads of int8 on registers, on every thread."""
        return 8 * self._dots / self._time_s(2)

    def close(self) -> None:
        self._team.close()

    def _time_s(self, record: int) -> float:
        self._team.select(record, 1)
        start = time.perf_counter()
        self._team.step()
        return time.perf_counter() - start


def _emit_read(module: Module) -> None:
    _, frame = open_kernel(module, "read", ("data", "num_bytes", "out"))
    f, data = frame.f, frame.pointer("data", I32)
    first, last = frame.share(frame.integer("num_bytes") // _TURN_BYTES)
    sums = f.registers(I32.x(LANES))
    for lane in range(_VECTORS_A_TURN):
        sums[lane] = f.zero(I32.x(LANES))
    with f.loop(first, last) as turn:
        here = data.bytes(turn * _TURN_BYTES)
        for lane in range(_VECTORS_A_TURN):
            here.prefetch(64 * lane + _PREFETCH_BYTES)
            sums[lane] = sums[lane] ^ here.vec(LANES * lane, LANES)
    total = sums[0]
    for lane in range(1, _VECTORS_A_TURN):
        total = total ^ sums[lane]
    frame.pointer("out", I32).put(frame.thread * 64, total)


def _emit_dots(module: Module, isa: Isa, is_int8: bool) -> None:
    symbol, type_ = ("int8_dots", I32.x(LANES)) if is_int8 else ("bf16_dots", V)
    _, frame = open_kernel(module, symbol, ("data", "loops", "out"))
    f, data = frame.f, frame.pointer("data", I32)
    left, right, sums = data.vec(0, LANES), data.vec(LANES, LANES), f.registers(type_)
    for each in range(_ACCUMULATORS):
        sums[each] = f.zero(type_)
    with f.loop(0, frame.integer("loops")):
        for each in range(_ACCUMULATORS):
            dot = isa.dot_quad if is_int8 else isa.dot_pair
            sums[each] = dot(sums[each], left, right)
    total = sums[0]
    for each in range(1, _ACCUMULATORS):
        total = total + sums[each]
    frame.pointer("out", type_.scalar).put(frame.thread * 64, total)
