"""Times whole steps of engines: decode at several batch sizes, and prompts of several lengths.

    scripts/bench steps [ENGINE_DIR ...] [--batches 1 8 32] [--prompts 512 2048]

Checks the answer first: requests in a batch get the tokens that they get alone. Then engines take
turns, a few steps at each shape, each next to a plain read of memory and loops of dot products on
registers, so that all see the same state of a shared machine. A step is inputs, native call and
draws (what the scheduler adds is bench.scheduler_overhead's). Decode: sequences after `--position`
tokens advance by one. Prefill: one fresh prompt, in the steps that the engine was built for.

Prints one JSON line for each engine and shape: median, p10 and p90 in ms, tokens/s, and two shares
of what was measured beside each visit: `bandwidth_share`, the time in which weights and cache can
be read, over the step's; `roofline_share`, the longer of that and of the arithmetic, op by op.
With --profile also each kind of op's share of a step's cycles on thread 0.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.parts.batch_check import check_batch_answers
from bench.parts.command_line import parser_of
from bench.parts.figures import print_line, spread
from bench.parts.sample_engine import build_sample
from tidemill.api.step_limits import Rates, op_limit, step_sizes
from tidemill.base.cpus import num_physical_cores
from tidemill.builder.machine_limits import MachineLimits
from tidemill.engine.reader import EngineFile
from tidemill.ir.text import parse_graph
from tidemill.ops.row import StepSizes
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.request import SamplingParams
from tidemill.runtime.step import PlanEntry, StepPlan

COUNTED_A_VISIT = 4
PROMPT_EVERY = 3


@dataclass(frozen=True)
class Shape:
    """Decode of `size` sequences, or a prompt of `size` tokens."""

    what: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.what} {self.size}"


@dataclass
class Visits:
    """What the steps of one shape took, and the shares that each visit reached."""

    seconds: list[float] = field(default_factory=list)
    bandwidth_shares: list[float] = field(default_factory=list)
    roofline_shares: list[float] = field(default_factory=list)


class Bench:
    """One engine, with sequences laid out one after the other in the cache."""

    def __init__(self, engine_dir: Path, shapes: list[Shape], options: argparse.Namespace) -> None:
        self.name, self.position = engine_dir.name, options.position
        batches = [shape.size for shape in shapes if shape.what == "decode"]
        prompts = [shape.size for shape in shapes if shape.what == "prefill"]
        block = EngineFile.open(engine_dir).manifest.kv.tokens_per_block
        self._blocks_each = -(-(options.position + 64) // block)
        tokens = max([batch * self._blocks_each * block for batch in batches] + prompts)
        self.executor = NativeExecutor.load(
            engine_dir, kv_cache_tokens=tokens, num_threads=options.threads
        )
        self.visits: dict[Shape, Visits] = {shape: Visits() for shape in shapes}
        self._random = np.random.default_rng(1)
        self._ops = parse_graph(self.executor.manifest.graph_text).ops
        self.measure(shapes[0])
        while self.executor.arrange_memory():
            pass
        self.executor.cache.write()

    def plans(self, shape: Shape) -> Iterator[StepPlan]:
        """Give the steps of one measurement."""
        limits, unit = self.executor.limits, self._blocks_each
        if shape.what == "decode":
            blocks = [list(range(i * unit, (i + 1) * unit)) for i in range(shape.size)]
            yield StepPlan(
                tuple(self._entry(i, self.position, 1, blocks[i]) for i in range(shape.size))
            )
            return
        table = list(range(-(-shape.size // limits.tokens_per_block)))
        for start in range(0, shape.size, limits.max_num_tokens):
            count = min(limits.max_num_tokens, shape.size - start)
            yield StepPlan((self._entry(0, start, count, table),))

    def measure(self, shape: Shape) -> float:
        """Return the seconds of one decode step, or of one prompt."""
        total = 0.0
        for plan in self.plans(shape):
            start = time.perf_counter()
            self.executor.execute(plan)
            total += time.perf_counter() - start
        return total

    def visit(self, shape: Shape, rates: Rates) -> None:
        """Time a shape; the first step may meet another team's threads, still spinning."""
        count = COUNTED_A_VISIT if shape.what == "decode" else 1
        if shape.what == "decode":
            self.measure(shape)
        seconds = [self.measure(shape) for _ in range(count)]
        visits = self.visits[shape]
        visits.seconds += seconds
        typical_s = statistics.median(seconds)
        limits = [op_limit(op, sizes, rates) for sizes in self._sizes(shape) for op in self._ops]
        visits.bandwidth_shares.append(sum(each.read_s for each in limits) / typical_s)
        visits.roofline_shares.append(sum(each.seconds for each in limits) / typical_s)

    def cycles(self, shape: Shape) -> dict[str, float]:
        """Return each kind of op's share of a step's cycles on thread 0, waiting apart."""
        counted = self.executor.team.profile()
        self.measure(shape)
        totals: dict[str, float] = defaultdict(float)
        for op, (work, wait) in zip(self.executor.manifest.plan, counted[0], strict=True):
            totals[op.op] += float(work)
            totals["waiting"] += float(wait)
        whole = sum(totals.values())
        return {name: round(value / whole, 3) for name, value in sorted(totals.items())}

    def _sizes(self, shape: Shape) -> list[StepSizes]:
        """Return what each step of a measurement asks of its ops."""
        if shape.what == "decode":
            return [step_sizes(shape.size, self.position, 1)]
        most = self.executor.limits.max_num_tokens
        starts = range(0, shape.size, most)
        return [step_sizes(1, start, min(most, shape.size - start)) for start in starts]

    def _entry(self, index: int, start: int, count: int, blocks: list[int]) -> PlanEntry:
        vocab = self.executor.limits.vocab_size
        tokens = self._random.integers(0, vocab, count).tolist()
        return PlanEntry(index, tokens, start, blocks, True, SamplingParams())


def main() -> None:
    """Check, warm up, time in turns, print."""
    options = read_options()
    shapes = [Shape("decode", batch) for batch in options.batches]
    shapes += [Shape("prefill", length) for length in options.prompts]
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = options.engines or [build_sample(scratch)]
        for engine_dir in engines:
            check_batch_answers(engine_dir, max(options.batches), options.threads)
        benches = [Bench(engine_dir, shapes, options) for engine_dir in engines]
        limits = MachineLimits(options.threads)
        stack.callback(limits.close)
        seen = take_turns(benches, limits, options.rounds)
        for bench in benches:
            report(bench, options)
            if options.profile:
                shares = {shape.name: bench.cycles(shape) for shape in shapes}
                print_line("profile", engine=bench.name, **shares)
            bench.executor.close()
        report_machine(seen)


def read_options() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("engines", nargs="*", type=Path, help="default: the sample in bfloat16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--position", type=int, default=128, help="tokens before a decode step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=num_physical_cores())
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


def take_turns(benches: list[Bench], limits: MachineLimits, num_rounds: int) -> list[Rates]:
    """Visit every engine's shapes round by round; prompts, which take longer, in some rounds."""
    for bench in benches:
        for shape in bench.visits:
            bench.measure(shape)
    seen = []
    for turn in range(num_rounds):
        for shape in benches[0].visits:
            if shape.what == "prefill" and turn % PROMPT_EVERY:
                continue
            for bench in benches:
                rates = Rates.measure(limits)
                bench.visit(shape, rates)
                seen.append(rates)
    return seen


def report(bench: Bench, options: argparse.Namespace) -> None:
    """Print an engine's lines."""
    for shape, visits in bench.visits.items():
        median_s = statistics.median(visits.seconds)
        facts = {
            "engine": bench.name,
            "what": shape.name,
            "target": bench.executor.manifest.code.target,
            "threads": options.threads,
            "position": options.position if shape.what == "decode" else 0,
            "ms": spread([each * 1e3 for each in visits.seconds]),
            "tokens_per_s": round(shape.size / median_s, 1),
            "bandwidth_share": round(statistics.median(visits.bandwidth_shares), 3),
            "roofline_share": round(statistics.median(visits.roofline_shares), 3),
        }
        print_line("steps", **facts)


def report_machine(seen: list[Rates]) -> None:
    for what in seen[0].by_name:
        rates = [each.by_name[what] / 1e9 for each in seen]
        print_line("steps", what=f"{what} rate, G/s", **spread(rates, 1))


if __name__ == "__main__":
    main()
