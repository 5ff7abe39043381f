"""Times whole steps of engines: decode at several batch sizes, prefill, and the time by op.

    bench/steps.py ENGINE_DIR... [--threads N] [--profile]

Engines are interleaved, round by round, beside the machine's peaks of the same run. Decode: B
sequences at position 128 advance by one token; prefill: one fresh prompt. Random tokens, greedy.
Prints one JSON line for each engine and shape: median, p10 and p90 in ms, tokens/s, and the share
of the read bandwidth that the weights' bytes alone took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from bench.machine import Peaks, measure_peaks
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.request import SamplingParams
from tidemill.runtime.step import PlanEntry, StepPlan

BATCHES = (1, 8, 32)
PROMPTS = (512, 2048)
POSITION = 128
NUM_ROUNDS = 7
STEPS_IN_ROUND = {1: 24, 8: 12, 32: 6}


class Bench:
    """One engine, with sequences laid out one after the other in the cache."""

    def __init__(self, engine_dir: Path, num_threads: int) -> None:
        self.name = engine_dir.name
        tokens = max(32 * 256, 2 * max(PROMPTS))
        self.executor = NativeExecutor.load(
            engine_dir, kv_cache_tokens=tokens, num_threads=num_threads
        )
        self.random = np.random.default_rng(1)
        limits = self.executor.limits
        self.blocks_each = -(-256 // limits.tokens_per_block)

    def entry(self, index: int, start: int, count: int, blocks: list[int]) -> PlanEntry:
        vocab = self.executor.limits.vocab_size
        tokens = self.random.integers(0, vocab, count).tolist()
        return PlanEntry(index, tokens, start, blocks, True, SamplingParams())

    def decode(self, batch: int) -> list[float]:
        """Seconds of each step."""
        n = self.blocks_each
        entries = [
            self.entry(i, POSITION, 1, list(range(i * n, (i + 1) * n))) for i in range(batch)
        ]
        return [self._time(StepPlan(tuple(entries))) for _ in range(STEPS_IN_ROUND[batch])]

    def prefill(self, length: int) -> list[float]:
        """Seconds of one prompt, in the chunks that the engine takes."""
        limits = self.executor.limits
        blocks = list(range(-(-length // limits.tokens_per_block)))
        total = 0.0
        for start in range(0, length, limits.max_num_tokens):
            count = min(limits.max_num_tokens, length - start)
            total += self._time(StepPlan((self.entry(0, start, count, blocks),)))
        return [total]

    def _time(self, plan: StepPlan) -> float:
        start = time.perf_counter()
        self.executor.execute(plan)
        return time.perf_counter() - start

    def profile(self, batch: int) -> dict[str, float]:
        """Share of one decode step's cycles by kind of op, of thread 0, waiting apart."""
        cycles = self.executor.team.profile()
        self.decode(batch)
        return self._shares(cycles)

    def profile_prefill(self, length: int) -> dict[str, float]:
        cycles = self.executor.team.profile()
        self.prefill(length)
        return self._shares(cycles)

    def _shares(self, cycles: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> dict[str, float]:
        totals: dict[str, float] = defaultdict(float)
        for op, (work, wait) in zip(self.executor.manifest.plan, cycles[0], strict=True):
            totals[op.op] += float(work)
            totals["waiting"] += float(wait)
        whole = sum(totals.values())
        return {name: round(value / whole, 3) for name, value in sorted(totals.items())}


def report(bench: Bench, what: str, tokens: int, seconds: list[float], peaks: Peaks) -> None:
    low, median, high = (float(np.percentile(seconds, p)) for p in (10, 50, 90))
    line = {
        "bench": "steps", "engine": bench.name, "what": what, "threads": peaks.num_threads,
        "median_ms": round(median * 1e3, 3), "p10_ms": round(low * 1e3, 3),
        "p90_ms": round(high * 1e3, 3), "tokens_s": round(tokens / median, 1),
    }  # fmt: skip
    if what == "decode 1":
        read = sum(op.bytes_fixed for op in bench.executor.manifest.plan) / median / 1e9
        line["read_share"] = round(read / peaks.read_gb_s, 3)
    print(json.dumps(line), flush=True)


def main() -> None:
    """Warm up, time in rounds, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engines", nargs="*", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if not args.engines:
        print("steps: no engine given, nothing timed", file=sys.stderr)
        return
    peaks = measure_peaks(args.threads)
    print(json.dumps({"bench": "machine", **{k: round(v, 1) for k, v in vars(peaks).items()}}))
    benches = [Bench(path, args.threads) for path in args.engines]
    times: dict[tuple[str, int, Bench], list[float]] = defaultdict(list)
    for number in range(NUM_ROUNDS + 1):
        for bench in benches:
            for batch in BATCHES:
                found = bench.decode(batch)
                times["decode", batch, bench] += found if number else []
            for length in PROMPTS if number % 3 == 0 else ():
                found = bench.prefill(length)
                times["prefill", length, bench] += found if number else []
    for (what, size, bench), seconds in sorted(times.items(), key=lambda item: item[0][:2]):
        report(bench, f"{what} {size}", size, seconds, peaks)
    for bench in benches if args.profile else ():
        shares = {str(batch): bench.profile(batch) for batch in BATCHES}
        shares["prefill 512"] = bench.profile_prefill(512)
        print(json.dumps({"bench": "profile", "engine": bench.name, **shares}))
        bench.executor.close()


if __name__ == "__main__":
    main()
