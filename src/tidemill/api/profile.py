"""Profile: where a step's time goes, op by op, against what this machine could do.

In: an engine and the step to look at (requests, positions already cached, new tokens of each).
Out: a `ProfileReport`. The step is run many times with the walker's own cycle counters on; the
machine's read bandwidth and dot-product rates are measured in between, as they move on a shared
machine; `step_limits` says what an op's limit is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tidemill.api.retarget import ensure_native_code
from tidemill.api.step_limits import Rates, op_limit, step_sizes
from tidemill.base.cpus import MAX_THREADS, num_physical_cores
from tidemill.base.dtypes import DType
from tidemill.base.errors import ConfigError
from tidemill.base.progress import Progress
from tidemill.builder.machine_limits import MachineLimits
from tidemill.engine.describe import table
from tidemill.engine.reader import EngineFile
from tidemill.ir.graph import Graph, Op
from tidemill.ir.text import parse_graph
from tidemill.ops.row import StepSizes
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.request import SamplingParams
from tidemill.runtime.step import PlanEntry, StepPlan

STEPS_A_ROUND = 10


@dataclass(frozen=True)
class ProfileRequest:
    """Which step to look at.

    Units: `batch_size` counts requests, `position` the tokens that each has cached already,
    `num_tokens` the new tokens of each: 1 is decode, more is a chunk of a prompt.
    """

    engine_dir: Path
    batch_size: int = 1
    position: int = 128
    num_tokens: int = 1
    num_rounds: int = 5
    num_threads: int | None = None


@dataclass(frozen=True)
class OpTime:
    """One op of one step. `work_us` is the slowest thread's, `wait_us` the mean at the barrier."""

    op: str
    layer: int
    output: str
    work_us: float
    wait_us: float
    flops: float
    bytes: float
    limit_us: float

    @property
    def roofline_share(self) -> float:
        """The limit over the time taken."""
        return self.limit_us / self.work_us if self.work_us else 0.0


@dataclass(frozen=True)
class ProfileReport:
    """A step's times. `step_us` is the median of whole rounds, counters included."""

    engine_dir: Path
    target: str
    num_threads: int
    batch_size: int
    position: int
    num_tokens: int
    step_us: float
    read_gb_per_s: float
    dot_gflops: float
    int8_gops: float
    ops: tuple[OpTime, ...]

    @property
    def limit_us(self) -> float:
        """The sum of the ops' limits: no step on this machine can be shorter."""
        return sum(op.limit_us for op in self.ops)

    @property
    def by_kind(self) -> dict[str, list[OpTime]]:
        """Ops by kind, the kind that takes longest first."""
        kinds: dict[str, list[OpTime]] = {}
        for op in self.ops:
            kinds.setdefault(op.op, []).append(op)
        return dict(sorted(kinds.items(), key=lambda kind: -sum(op.work_us for op in kind[1])))

    def __str__(self) -> str:
        lines = [
            f"{self.engine_dir} for {self.target}, {self.num_threads} thread(s): {self.title}",
            f"step {self.step_us / 1e3:.3f} ms, limit {self.limit_us / 1e3:.3f} ms "
            f"({self.limit_us / self.step_us:.0%}); measured meanwhile: read "
            f"{self.read_gb_per_s:.1f} GB/s, dot products {self.dot_gflops:.0f} GFLOP/s of bf16, "
            f"{self.int8_gops:.0f} GOP/s of int8",
            "",
        ]
        heading = ("op", "calls", "us", "of step", "waiting us", "limit us", "of limit")
        rows: list[tuple[str, ...]] = [heading]
        rows += [self._kind_row(kind, ops) for kind, ops in self.by_kind.items()]
        return "\n".join([*lines, table(rows)])

    @property
    def title(self) -> str:
        """What step this is, for people."""
        what = "decode" if self.num_tokens == 1 else f"{self.num_tokens} prompt tokens each"
        return f"batch {self.batch_size}, {what}, {self.position} positions cached"

    def _kind_row(self, kind: str, ops: list[OpTime]) -> tuple[str, ...]:
        work, wait, limit = (
            sum(values)
            for values in zip(*((o.work_us, o.wait_us, o.limit_us) for o in ops), strict=True)
        )
        share = f"{limit / work:.0%}" if work else "-"
        of_step = f"{work / self.step_us:.1%}"
        return kind, str(len(ops)), f"{work:.1f}", of_step, f"{wait:.1f}", f"{limit:.1f}", share


def profile_engine(request: ProfileRequest, progress: Progress | None = None) -> ProfileReport:
    """Run the step and the machine's limits in turns; nothing else should run meanwhile.

    Raises: ConfigError when the engine has no such step; EngineFormatError, EngineTargetError.
    """
    with EngineFile.open(request.engine_dir) as engine:
        _check(request, engine.config["build_config"])
    ensure_native_code(request.engine_dir)
    num_threads = num_physical_cores() if request.num_threads is None else request.num_threads
    tokens_cached = request.batch_size * (request.position + request.num_tokens + 64)
    executor = NativeExecutor.load(
        request.engine_dir, kv_cache_tokens=tokens_cached, num_threads=num_threads
    )
    limits = MachineLimits(num_threads)
    try:
        block = executor.limits.tokens_per_block
        # As in service, memory is arranged before high blocks are touched: they get huge pages.
        executor.execute(_plan(replace(request, batch_size=1, position=0, num_tokens=1), block))
        while executor.arrange_memory():
            pass
        executor.execute(_plan(request, block))
        executor.cache.write()
        rounds = list(_rounds(request.num_rounds, executor, limits, progress))
        return _report(request, num_threads, executor, rounds)
    finally:
        limits.close()
        executor.close()


@dataclass(frozen=True)
class _Round:
    """Cycles of (threads, ops, work and wait) and seconds for one step; the machine's limits."""

    cycles: npt.NDArray[np.float64]
    step_s: float
    rates: Rates


def _rounds(
    count: int, executor: NativeExecutor, limits: MachineLimits, progress: Progress | None
) -> Iterator[_Round]:
    for done in range(count):
        cycles = executor.team.profile()
        start = time.perf_counter()
        for _ in range(STEPS_A_ROUND):
            executor.team.step()
        seconds = (time.perf_counter() - start) / STEPS_A_ROUND
        if progress:
            progress("steps", done + 1, count)
        yield _Round(cycles / STEPS_A_ROUND, seconds, Rates.measure(limits))


def _check(request: ProfileRequest, limits: Mapping[str, int]) -> None:
    num_tokens = request.batch_size * request.num_tokens
    max_batch, max_tokens, max_length = (
        limits[name] for name in ("max_batch_size", "max_num_tokens", "max_seq_len")
    )
    num_threads = 1 if request.num_threads is None else request.num_threads
    checks = {
        f"batch size {request.batch_size}": 1 <= request.batch_size <= max_batch,
        f"{num_tokens} tokens in the step": 1 <= num_tokens <= max_tokens,
        f"position {request.position}": 0 <= request.position <= max_length - request.num_tokens,
        f"{num_threads} threads": 1 <= num_threads <= MAX_THREADS,
    }
    faults = [fault for fault, is_fine in checks.items() if not is_fine]
    if faults:
        raise ConfigError(
            "the engine cannot run the step that is to be profiled",
            where=str(request.engine_dir),
            expected=f"at most {max_batch} requests, {max_tokens} tokens and {max_length} "
            f"positions, 1 to {MAX_THREADS} threads",
            got="; ".join(faults),
            hint="choose a smaller step, or build an engine with larger limits",
        )


def _plan(request: ProfileRequest, tokens_per_block: int) -> StepPlan:
    """Every request has blocks of its own; what they hold does not change the time."""
    end = request.position + request.num_tokens
    num_blocks = -(-end // tokens_per_block)
    greedy = SamplingParams()
    return StepPlan(
        tuple(
            PlanEntry(
                each,
                (0,) * request.num_tokens,
                request.position,
                list(range(each * num_blocks, (each + 1) * num_blocks)),
                True,
                greedy,
            )
            for each in range(request.batch_size)
        )
    )


def _report(
    request: ProfileRequest, num_threads: int, executor: NativeExecutor, rounds: list[_Round]
) -> ProfileReport:
    step_s = statistics.median(each.step_s for each in rounds)
    rates = Rates.medians([each.rates for each in rounds])
    # All of a thread's cycles make up the step, which says how long a cycle is.
    scaled = [each.cycles * (each.step_s * 1e6 / each.cycles[0].sum()) for each in rounds]
    times_us = np.median(np.stack(scaled), axis=0)
    sizes = step_sizes(request.batch_size, request.position, request.num_tokens)
    graph: Graph = parse_graph(executor.manifest.graph_text)
    ops = tuple(
        _op_time(op, sizes, times_us[:, index], rates) for index, op in enumerate(graph.ops)
    )
    return ProfileReport(
        engine_dir=request.engine_dir,
        target=executor.target,
        num_threads=num_threads,
        batch_size=request.batch_size,
        position=request.position,
        num_tokens=request.num_tokens,
        step_us=step_s * 1e6,
        read_gb_per_s=rates.read / 1e9,
        dot_gflops=rates.ops[DType.BF16] / 1e9,
        int8_gops=rates.ops[DType.Q8] / 1e9,
        ops=ops,
    )


def _op_time(op: Op, sizes: StepSizes, times_us: npt.NDArray[np.float64], rates: Rates) -> OpTime:
    limit = op_limit(op, sizes, rates)
    return OpTime(
        op=op.kind,
        layer=op.layer,
        output=op.outputs[0].name,
        work_us=float(times_us[:, 0].max()),
        wait_us=float(times_us[:, 1].mean()),
        flops=limit.flops,
        bytes=limit.bytes,
        limit_us=limit.seconds * 1e6,
    )
