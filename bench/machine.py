"""Measures what this machine can do, with the house's own code: reading, bf16 and int8 products.

`measure_peaks` is what other benchmarks call in the same run, since a shared machine's clock and
bandwidth change by the minute. Read: 64 bytes at a time over 256 MB a thread, huge pages. Products:
loops over registers, twelve chains, no memory. Run alone, it prints one JSON line for each number
of threads. Units: GB/s, G operations/s (a multiplication and an addition are two).
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass

import numpy as np

from tidemill.base import abi
from tidemill.base.target import host_targets
from tidemill.codegen.compile import compile_ir
from tidemill.codegen.isa import LANES, Isa, V, isa_for
from tidemill.codegen.kernel import Kernel, open_kernel
from tidemill.codegen.link import link_object
from tidemill.codegen.module import Module
from tidemill.codegen.spmd import emit_team
from tidemill.codegen.types import I32
from tidemill.device.cpu import LoadedCode, Team, address_of, allocate

READ_BYTES = 1 << 28
NUM_CHAINS = 12
NUM_ROUNDS = 200_000
NUM_RUNS = 5


@dataclass(frozen=True)
class Peaks:
    """The best of a few runs on `num_threads` threads."""

    num_threads: int
    read_gb_s: float
    bf16_gop_s: float
    int8_gop_s: float


def measure_peaks(num_threads: int) -> Peaks:
    """Measure now."""
    isa = isa_for(host_targets()[0])
    module = Module()
    kernels = [_emit_read(module), _emit_dots(module, isa, False), _emit_dots(module, isa, True)]
    emit_team(module, isa)
    target = isa.target
    text = module.text(target.triple, target.cpu, target.features, isa.vector_bits)
    image = link_object(compile_ir(text, target))
    code = LoadedCode(image.data, image.entry_offsets)
    memory = allocate(READ_BYTES * num_threads + 64)
    memory[::4096] = 1
    records = np.zeros((len(kernels), abi.RECORD_WORDS), np.int64)
    for record, kernel in zip(records, kernels, strict=True):
        record[:3] = code.address(kernel.symbol), address_of(memory), READ_BYTES
    team = Team(code, records, num_threads)
    seconds = [_best_seconds(team, index) for index in range(len(kernels))]
    team.close()
    dots = num_threads * NUM_ROUNDS * NUM_CHAINS * LANES * 2
    return Peaks(
        num_threads,
        READ_BYTES * num_threads / seconds[0] / 1e9,
        dots * 2 / seconds[1] / 1e9,
        dots * 4 / seconds[2] / 1e9,
    )


def _best_seconds(team: Team, index: int) -> float:
    team.select(index, 1)
    times = []
    for _ in range(NUM_RUNS):
        start = time.perf_counter()
        team.step()
        times.append(time.perf_counter() - start)
    return min(times)


def _emit_read(module: Module) -> Kernel:
    """Each thread reads its part and leaves the sum behind the memory, so that it is computed."""
    kernel, frame = open_kernel(module, "read", ("memory", "bytes"))
    f, sums = frame.f, frame.f.registers(I32.x(LANES))
    start = frame.pointer("memory", I32).bytes(frame.thread * frame.integer("bytes"))
    for u in range(4):
        sums[u] = f.zero(I32.x(LANES))
    with f.loop(0, frame.integer("bytes"), 256) as at:
        for u in range(4):
            part = start.bytes(at).bytes(64 * u)
            part.prefetch(8192)
            sums[u] = sums[u] + part.vec(0, LANES)
    start.put(0, sums[0] + sums[1] + sums[2] + sums[3])
    return kernel


def _emit_dots(module: Module, isa: Isa, is_int8: bool) -> Kernel:
    symbol = "int8_dots" if is_int8 else "bf16_dots"
    kernel, frame = open_kernel(module, symbol, ("memory", "bytes"))
    f, sums = frame.f, frame.f.registers(I32.x(LANES) if is_int8 else V)
    memory = frame.pointer("memory", I32).bytes(frame.thread * 4096)
    w, x = memory.vec(0, LANES), memory[20].splat(LANES)
    for chain in range(NUM_CHAINS):
        sums[chain] = f.zero(sums.type)
    with f.loop(0, NUM_ROUNDS):
        for chain in range(NUM_CHAINS):
            sums[chain] = (isa.dot_quad if is_int8 else isa.dot_pair)(sums[chain], w, x)
    for chain in range(NUM_CHAINS):
        memory.of(sums.type.scalar).put(64 + chain * LANES, sums[chain])
    return kernel


def main() -> None:
    """Print the peaks on one thread and on two."""
    for num_threads in (1, 2):
        peaks = {key: round(value, 1) for key, value in asdict(measure_peaks(num_threads)).items()}
        print(json.dumps({"bench": "machine", "machine": platform.machine(), **peaks}))


if __name__ == "__main__":
    main()
