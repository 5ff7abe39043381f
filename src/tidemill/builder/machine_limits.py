"""The machine's own limits, measured with a team of our threads: read bandwidth and dot rates.

Loops with nothing else in them: two read memory that no cache holds, of which one prefetches; three
repeat on registers the target's dot products of bf16 and of int8, and multiply-adds of f32. Whoever
times a kernel runs these in between, since a shared machine's limits move within minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tidemill.base import abi
from tidemill.base.dtypes import DType
from tidemill.base.target import host_targets
from tidemill.codegen.compile import compile_module
from tidemill.codegen.emitter import Value
from tidemill.codegen.isa import LANES, V, isa_for
from tidemill.codegen.kernel import open_kernel
from tidemill.codegen.module import Module
from tidemill.codegen.spmd import emit_team
from tidemill.codegen.types import I32, Type
from tidemill.device.cpu import LoadedCode, MeasuringTeam, address_of, allocate

READ_BYTES = 256 << 20
DOT_LOOPS = 200_000
SETTLE_S = 0.002
_PREFETCH_BYTES = 8192
_VECTORS_A_TURN = 8
_TURN_BYTES = _VECTORS_A_TURN * 64
_ACCUMULATORS = 20
# How products with activations of a type are made: the loop, and a lane's operations in each dot.
PRODUCTS = {DType.BF16: ("bf16_dots", 4), DType.Q8: ("int8_dots", 8), DType.F32: ("f32_dots", 2)}
_LOOP_TO_SIZE = {
    "read": READ_BYTES,
    "read_prefetching": READ_BYTES,
    **{loop: DOT_LOOPS for loop, _ in PRODUCTS.values()},
}

Dot = Callable[[Value, Value, Value], Value]


class MachineLimits:
    """Loops that are ready to run on `num_threads`; `close` ends their threads."""

    def __init__(self, num_threads: int) -> None:
        isa = isa_for(host_targets()[0])
        module = Module()
        emit_team(module, isa)
        _emit_read(module, "read", is_prefetching=False)
        _emit_read(module, "read_prefetching", is_prefetching=True)
        _emit_dots(module, "bf16_dots", V, isa.dot_pair)
        _emit_dots(module, "int8_dots", I32.x(LANES), isa.dot_quad)
        _emit_dots(module, "f32_dots", V, _multiply_add)
        image = compile_module(module, isa)
        code = LoadedCode(image.data, image.entry_offsets)
        self._memory = allocate(READ_BYTES)
        self._memory[:] = 1
        self._out = np.zeros(64 * num_threads, np.float32)
        records = np.zeros((len(_LOOP_TO_SIZE), abi.RECORD_WORDS), np.int64)
        out = address_of(self._out)
        for record, (symbol, size) in zip(records, _LOOP_TO_SIZE.items(), strict=True):
            record[:4] = code.address(symbol), address_of(self._memory), size, out
        self._team = MeasuringTeam(code, records, num_threads)
        self._dots = float(LANES * _ACCUMULATORS * DOT_LOOPS * num_threads)

    def read_bytes_per_s(self) -> float:
        """Read all of the memory once, every thread its part; with or without prefetching."""
        return READ_BYTES / min(self._time_s("read"), self._time_s("read_prefetching"))

    def ops_per_s(self, activation: DType) -> float:
        """Multiply and add on registers, on every thread, as with activations of this type."""
        loop, num_ops = PRODUCTS[activation]
        return num_ops * self._dots / self._time_s(loop)

    def close(self) -> None:
        self._team.close()

    def _time_s(self, loop: str) -> float:
        """The best of three, when other teams' threads no longer hold a core by spinning."""
        self._team.select(list(_LOOP_TO_SIZE).index(loop), 1)
        seconds = []
        time.sleep(SETTLE_S)
        for _ in range(3):
            start = time.perf_counter()
            self._team.step()
            seconds.append(time.perf_counter() - start)
        return min(seconds)


def _emit_read(module: Module, symbol: str, is_prefetching: bool) -> None:
    _, frame = open_kernel(module, symbol, ("data", "num_bytes", "out"))
    f, data = frame.f, frame.pointer("data", I32)
    first, last = frame.share(frame.integer("num_bytes") // _TURN_BYTES)
    sums = f.registers(I32.x(LANES))
    for lane in range(_VECTORS_A_TURN):
        sums[lane] = f.zero(I32.x(LANES))
    with f.loop(first, last) as turn:
        here = data.bytes(turn * _TURN_BYTES)
        for lane in range(_VECTORS_A_TURN):
            if is_prefetching:
                here.prefetch(64 * lane + _PREFETCH_BYTES)
            sums[lane] = sums[lane] ^ here.vec(LANES * lane, LANES)
    total = sums[0]
    for lane in range(1, _VECTORS_A_TURN):
        total = total ^ sums[lane]
    frame.pointer("out", I32).put(frame.thread * 64, total)


def _multiply_add(acc: Value, left: Value, right: Value) -> Value:
    return left.bits_as(V).fma(right.bits_as(V), acc)


def _emit_dots(module: Module, symbol: str, type_: Type, dot: Dot) -> None:
    _, frame = open_kernel(module, symbol, ("data", "loops", "out"))
    f, data = frame.f, frame.pointer("data", I32)
    left, right, sums = data.vec(0, LANES), data.vec(LANES, LANES), f.registers(type_)
    for each in range(_ACCUMULATORS):
        sums[each] = f.zero(type_)
    with f.loop(0, frame.integer("loops")):
        for each in range(_ACCUMULATORS):
            sums[each] = dot(sums[each], left, right)
    total = sums[0]
    for each in range(1, _ACCUMULATORS):
        total = total + sums[each]
    frame.pointer("out", type_.scalar).put(frame.thread * 64, total)
