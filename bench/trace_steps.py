"""Where the time of mixed serving goes: every step of a trace, against what it must take.

    scripts/bench trace_steps [--engine_dir DIR] [--trace FILE] [--max_step_ms 100 ...] [--steps]

All requests of a trace are served at once, streamed, as in service. Each step is held against the
sum of its ops' limits (api/step_limits.py) at rates that are measured before and after the trace;
what is outside of the native call is told apart. Checks that the tokens of all runs are the same.
One JSON line for each bound on a step's time and kind of step: `decode`, `prompt` and `mixed`.
Under `ops`, each kind of op: ms at work and waiting for the other threads (thread 0), and its
limit's ms.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line
from bench.parts.sample_engine import build_sample
from tidemill.api.step_limits import Rates, op_limit
from tidemill.api.workload import Job, read_jobs
from tidemill.base.cpus import num_physical_cores
from tidemill.builder.machine_limits import MachineLimits
from tidemill.host.messages import GenerateRequest
from tidemill.host.session import Session
from tidemill.ir.text import parse_graph
from tidemill.ops.row import StepSizes
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.step import StepPlan, StepResult
from tidemill.text.tokenizer import Tokenizer

TRACE = Path(__file__).resolve().parent / "traces" / "mixed_32.json"


@dataclass
class Step:
    """What a step held and took. Units: ms; `cycles` is (ops, work and wait) of thread 0."""

    plan: StepPlan
    inputs_and_native_ms: float
    cycles: npt.NDArray[np.int64]
    whole_ms: float = 0.0

    @property
    def num_decode(self) -> int:
        return sum(len(entry.tokens) == entry.num_draws for entry in self.plan.entries)

    @property
    def kind(self) -> str:
        if self.num_decode == self.plan.num_tokens:
            return "decode"
        return "mixed" if self.num_decode else "prompt"

    @property
    def op_ms(self) -> npt.NDArray[np.float64]:
        """All cycles of thread 0 make up the native call; filling inputs takes microseconds."""
        return self.cycles * (self.inputs_and_native_ms / float(self.cycles.sum()))


class WatchedExecutor:
    """An executor that keeps what each step held and took; what it adds itself is not counted."""

    def __init__(self, executor: NativeExecutor) -> None:
        self._executor, self.limits = executor, executor.limits
        self._cycles = executor.team.profile()
        self.steps: list[Step] = []

    def execute(self, plan: StepPlan) -> StepResult:
        self._cycles[:] = 0
        start = time.perf_counter()
        result = self._executor.execute(plan)
        seconds = time.perf_counter() - start
        self.steps.append(Step(plan, seconds * 1e3, self._cycles[0].copy()))
        return result

    def arrange_memory(self) -> bool:
        return self._executor.arrange_memory()

    def close(self) -> None:
        self._executor.close()


def sizes_of(plan: StepPlan) -> StepSizes:
    """Return what a plan asks of each op."""
    spans = [(entry.start, len(entry.tokens)) for entry in plan.entries]
    return StepSizes(
        tokens=plan.num_tokens,
        sequences=len(spans),
        logit_rows=sum(entry.num_draws for entry in plan.entries),
        kv_tokens=sum(start + count for start, count in spans),
        attention_pairs=sum(n * start + n * (n + 1) // 2 for start, n in spans),
    )


@dataclass
class Kind:
    """Sums over the steps of a kind. Units: ms."""

    steps: int = 0
    decode_rows: int = 0
    prompt_rows: int = 0
    whole_ms: float = 0.0
    outside_ms: float = 0.0
    limit_ms: float = 0.0
    ops: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0] * 3))


def main() -> None:
    """Warm up, take turns, check, print."""
    options = read_options()
    with tempfile.TemporaryDirectory() as scratch:
        engine_dir = options.engine_dir or build_sample(Path(scratch))
        tokenizer = Tokenizer.from_directory(engine_dir)
        jobs = read_jobs(options.trace, 49_000, tokenizer.encode)
        room = sum(len(job.prompt_tokens) + job.num_output_tokens + 32 for job in jobs)
        executor = NativeExecutor.load(
            engine_dir, kv_cache_tokens=room, num_threads=options.threads, pin_threads=True
        )
        limits = MachineLimits(options.threads)
        answers = set()
        for turn in range(options.rounds):
            for bound in options.max_step_ms:
                rates = Rates.measure(limits)
                steps, answer = serve(executor, tokenizer, jobs, bound)
                answers.add(answer)
                report(executor, steps, Rates.medians([rates, Rates.measure(limits)]), bound, turn)
                if options.steps:
                    print_steps(steps)
        assert len(answers) == 1, "the answers depend on how the prompts were cut"
        limits.close()
        executor.close()


def read_options() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--engine_dir", type=Path, help="default: the sample, built in bfloat16")
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--max_step_ms", type=float, nargs="+", default=[100.0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=num_physical_cores())
    parser.add_argument("--steps", action="store_true", help="print every step, too")
    return parser.parse_args()


def serve(
    executor: NativeExecutor, tokenizer: Tokenizer, jobs: list[Job], bound: float
) -> tuple[list[Step], str]:
    """Serve all requests; returns the steps, and all answers as one text."""
    watched = WatchedExecutor(executor)
    config = RuntimeConfig(enable_block_reuse=False, max_step_ms=bound)
    session = Session(watched, tokenizer, config)
    for number, job in enumerate(jobs):
        session.submit(
            GenerateRequest(
                request_id=str(number),
                prompt_tokens=job.prompt_tokens,
                max_tokens=job.num_output_tokens,
                end_id=-1,
                streaming=True,
            )
        )
    tokens: dict[str, list[int]] = {str(number): [] for number in range(len(jobs))}
    while session.has_work:
        start = time.perf_counter()
        for update in session.step():
            tokens[update.request_id] += update.token_ids
        watched.steps[-1].whole_ms = (time.perf_counter() - start) * 1e3
    return watched.steps, json.dumps(tokens)


def report(
    executor: NativeExecutor, steps: list[Step], rates: Rates, bound: float, turn: int
) -> None:
    """Print a line for each kind of step."""
    ops = parse_graph(executor.manifest.graph_text).ops
    kinds: dict[str, Kind] = defaultdict(Kind)
    for step in steps:
        sizes, op_ms, num_decode = sizes_of(step.plan), step.op_ms, step.num_decode
        for kind in (kinds[step.kind], kinds["all"]):
            kind.steps += 1
            kind.decode_rows += num_decode
            kind.prompt_rows += sizes.tokens - num_decode
            kind.whole_ms += step.whole_ms
            kind.outside_ms += step.whole_ms - step.inputs_and_native_ms
            for op, (work_ms, wait_ms) in zip(ops, op_ms, strict=True):
                limit_ms = op_limit(op, sizes, rates).seconds * 1e3
                kind.limit_ms += limit_ms
                figures = zip(kind.ops[op.kind], (work_ms, wait_ms, limit_ms), strict=True)
                kind.ops[op.kind] = [one + other for one, other in figures]
    for name, kind in kinds.items():
        print_line(
            "trace_steps",
            max_step_ms=bound,
            turn=turn,
            kind=name,
            steps=kind.steps,
            decode_rows=kind.decode_rows,
            prompt_rows=kind.prompt_rows,
            whole_ms=round(kind.whole_ms, 1),
            outside_ms=round(kind.outside_ms, 1),
            limit_ms=round(kind.limit_ms, 1),
            roofline_share=round(kind.limit_ms / kind.whole_ms, 3),
            ops={op: [round(value, 1) for value in each] for op, each in kind.ops.items()},
        )


def print_steps(steps: list[Step]) -> None:
    for step in steps:
        sizes, num_decode = sizes_of(step.plan), step.num_decode
        print(
            f"{num_decode:3} + {sizes.tokens - num_decode:4} rows of {sizes.sequences:2}, "
            f"{sizes.kv_tokens:5} cached, {step.whole_ms:7.2f} ms, "
            f"{step.whole_ms - step.inputs_and_native_ms:5.2f} outside"
        )


if __name__ == "__main__":
    main()
