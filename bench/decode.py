"""Times decode steps of the whole runtime (scheduler, inputs, native plan) at several batch sizes.

Checks the answer first: requests in a batch get the tokens that they get alone. Then rounds of a
few steps at each batch size take turns with a plain read of memory, a loop of dot products and,
with --prototype, the same step of a peer; so all of them see the same state of a shared machine.
Prints one JSON line for each batch size. Shares: `bandwidth_share` is the time that reading the
weights and the cache would take at the measured read rate, over the step's; `roofline_share` the
same with the arithmetic at the measured dot rate, where that takes longer; each visit's steps are
held against the rates measured just before them. Units: milliseconds, bytes and flops a second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.parts.figures import print_line, spread
from bench.parts.prototype import Prototype
from bench.parts.sample_engine import build_sample
from tidemill.base.target import num_physical_cores
from tidemill.builder.machine_limits import MachineLimits
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import Request

STEPS_A_VISIT = 5
COUNTED_A_VISIT = STEPS_A_VISIT - 1
CHECKED_TOKENS = 24


@dataclass
class Decoder:
    """A batch of requests in the middle of their answers, and what its steps took."""

    batch: int
    executor: NativeExecutor
    loop: Loop
    position: int
    step_ms: list[float] = field(default_factory=list)
    native_ms: list[float] = field(default_factory=list)
    peer_ms: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    dots: list[float] = field(default_factory=list)

    def step(self) -> None:
        """Time one step: all of it, and the native call within."""
        native_s: list[float] = []
        call = self.executor.team.step

        def timed_call() -> None:
            start = time.perf_counter()
            call()
            native_s.append(time.perf_counter() - start)

        self.executor.team.step = timed_call  # type: ignore[method-assign]
        start = time.perf_counter()
        updates = self.loop.step()
        self.step_ms.append((time.perf_counter() - start) * 1e3)
        self.executor.team.step = call  # type: ignore[method-assign]
        self.native_ms.append(sum(native_s) * 1e3)
        self.position += 1
        assert len(updates) == self.batch, "a request ended or was left out"


def main() -> None:
    """Check, warm up, time in turns, print."""
    options = read_options()
    with tempfile.TemporaryDirectory() as scratch:
        engine_dir = options.engine_dir or build_sample(Path(scratch))
        measure(engine_dir, options)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine_dir", type=Path, help="default: the sample, built in bfloat16")
    parser.add_argument("--prototype", type=Path, help="directory of the peer's smol.py")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--position", type=int, default=128, help="prompt tokens")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--threads", type=int, default=num_physical_cores())
    return parser.parse_args()


def measure(engine_dir: Path, options: argparse.Namespace) -> None:
    """Run the rounds and print the lines."""
    steps = STEPS_A_VISIT * (options.rounds + 1)
    decoders = [open_decoder(engine_dir, batch, options, steps) for batch in options.batches]
    check_answers(engine_dir, options)
    limits = MachineLimits(options.threads)
    peer = None
    if options.prototype:
        context = options.position + steps + 8
        peer = Prototype(options.prototype, tuple(options.batches), context, options.threads)
    for turn in range(options.rounds + 1):
        for decoder in decoders:
            decoder.reads.append(limits.read_bytes_per_s())
            decoder.dots.append(limits.dot_flops_per_s())
            visit(decoder, peer, is_peer_first=turn % 2 == 1)
    for decoder in decoders:
        report(decoder, options)
    reads = [rate / 1e9 for decoder in decoders for rate in decoder.reads]
    dots = [rate / 1e9 for decoder in decoders for rate in decoder.dots]
    print_line("decode", what="read bandwidth, GB/s", **spread(reads))
    print_line("decode", what="bf16 dot rate, GFLOP/s", **spread(dots))
    for decoder in decoders:
        decoder.loop.close()
    limits.close()
    if peer is not None:
        peer.close()


def open_decoder(engine_dir: Path, batch: int, options: argparse.Namespace, steps: int) -> Decoder:
    """Load the engine and bring a batch of prompts to its first token."""
    tokens_each = options.position + steps + 96
    executor = NativeExecutor.load(
        engine_dir, kv_cache_tokens=batch * tokens_each, num_threads=options.threads
    )
    loop = Loop(executor)
    longest = steps + 64  # prompts enter over several steps, so the first are ahead of the last
    for request in range(batch):
        loop.submit(Request(request, prompt(request, options.position), longest))
    begun: set[int] = set()
    while len(begun) < batch:
        begun.update(update.request_id for update in loop.step())
    return Decoder(batch, executor, loop, options.position)


def visit(decoder: Decoder, peer: Prototype | None, is_peer_first: bool) -> None:
    """Take a block of our steps and one of the peer's, from the same position.

    The first step of a block is not counted: another team's threads may still be spinning.
    """
    position = decoder.position
    if is_peer_first and peer is not None:
        visit_peer(decoder, peer, position)
    for _ in range(STEPS_A_VISIT):
        decoder.step()
    del decoder.step_ms[-STEPS_A_VISIT], decoder.native_ms[-STEPS_A_VISIT]
    if not is_peer_first and peer is not None:
        visit_peer(decoder, peer, position)


def visit_peer(decoder: Decoder, peer: Prototype, position: int) -> None:
    times_ms: list[float] = []
    for step in range(STEPS_A_VISIT):
        peer.prepare(decoder.batch, position + step)
        start = time.perf_counter()
        peer.step(decoder.batch)
        times_ms.append((time.perf_counter() - start) * 1e3)
    decoder.peer_ms += times_ms[1:]


def prompt(seed: int, length: int) -> tuple[int, ...]:
    """Return tokens of no meaning, different for each seed."""
    return tuple((7919 * (seed + 1) + 104729 * at) % 40_000 + 100 for at in range(length))


def check_answers(engine_dir: Path, options: argparse.Namespace) -> None:
    """Compare the largest batch's tokens with those of some of its requests alone."""
    batch = max(options.batches)
    executor = NativeExecutor.load(
        engine_dir,
        kv_cache_tokens=batch * (options.position + 2 * CHECKED_TOKENS),
        num_threads=options.threads,
    )
    together = answers(Loop(executor), range(batch), options.position)
    for request in {0, batch // 2, batch - 1}:
        alone = answers(Loop(executor), [request], options.position)
        assert alone[request] == together[request], f"request {request} differs in a batch"
    executor.close()


def answers(loop: Loop, requests: range | list[int], length: int) -> dict[int, list[int]]:
    for request in requests:
        loop.submit(Request(request, prompt(request, length), CHECKED_TOKENS))
    tokens: dict[int, list[int]] = {request: [] for request in requests}
    while loop.has_work:
        for update in loop.step():
            tokens[update.request_id] += update.new_tokens
    return tokens


def report(decoder: Decoder, options: argparse.Namespace) -> None:
    """Print a batch size's line; the first visit was the warm-up."""
    step_ms = decoder.step_ms[COUNTED_A_VISIT:]
    native_ms = decoder.native_ms[COUNTED_A_VISIT:]
    peer_ms = decoder.peer_ms[COUNTED_A_VISIT:]
    manifest = decoder.executor.manifest
    middle = (options.position + decoder.position) / 2
    weights = sum(op.bytes_fixed for op in manifest.plan)
    read_bytes = weights + decoder.batch * middle * manifest.kv.bytes_per_token
    flops = decoder.batch * sum(op.flops_per_row for op in manifest.plan)
    shares = []
    for visit_, (read, dot) in enumerate(zip(decoder.reads, decoder.dots, strict=True)):
        steps = decoder.step_ms[visit_ * COUNTED_A_VISIT :][:COUNTED_A_VISIT]
        typical_s = statistics.median(steps) / 1e3
        shares.append((read_bytes / read / typical_s, flops / dot / typical_s))
    median = statistics.median(step_ms)
    python_ms = [whole - native for whole, native in zip(step_ms, native_ms, strict=True)]
    facts = {
        "target": manifest.code.target,
        "dtype": decoder.executor.engine.config["pretrained_config"]["dtype"],
        "batch": decoder.batch,
        "threads": options.threads,
        "positions": [options.position, decoder.position],
        "step_ms": spread(step_ms),
        "tokens_per_s": round(decoder.batch / median * 1e3, 1),
        "read_gb_per_s": round(read_bytes / median / 1e6, 1),
        "bandwidth_share": round(statistics.median(read for read, _ in shares[1:]), 3),
        "roofline_share": round(statistics.median(map(max, shares[1:])), 3),
        "python_ms": spread(python_ms),
        "python_share": round(statistics.median(python_ms) / median, 4),
    }
    if peer_ms:
        facts["prototype_ms"] = spread(peer_ms)
        facts["speed_over_prototype"] = round(statistics.median(peer_ms) / median, 3)
    print_line("decode", **facts)


if __name__ == "__main__":
    main()
