"""A batch that goes on as it is, against one that is decided anew in every step.

The same random workloads run twice; the second time no step may go on. Plans, statistics and the
memory that the native executor fills must be the same.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.runtime.workload import Workload
from tests.unit.engine.tiny_engine import make_manifest
from tidemill.base import abi
from tidemill.builder.build_config import BuildConfig
from tidemill.builder.cpu_memory import place_inputs
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.executor.step_inputs import StepInputs
from tidemill.runtime.iteration_stats import IterationStats
from tidemill.runtime.loop import Loop
from tidemill.runtime.micro_batch import MicroBatch
from tidemill.runtime.request import Request, SamplingParams
from tidemill.runtime.simulation import FakeExecutor
from tidemill.runtime.step import EngineLimits, PlanEntry, StepPlan, StepResult

LIMITS = EngineLimits(4, 64, 64, 64, 8, 32, 97)


def frozen(plan: StepPlan) -> StepPlan:
    """A plan as it is now: block tables grow."""
    entries = (replace(each, block_table=tuple(each.block_table)) for each in plan.entries)
    return replace(plan, entries=tuple(entries))


class RecordingWorkload(Workload):
    """Keeps every plan."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.plans: list[StepPlan] = []
        execute = self.executor.execute

        def record(plan: StepPlan) -> StepResult:
            self.plans.append(frozen(plan))
            return execute(plan)

        self.executor.execute = record  # type: ignore[method-assign]

    def run(self) -> RecordingWorkload:
        for _ in range(200):
            self.step()
        self.finish()
        return self


def never_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    none = property(lambda batch: 0, lambda batch, count: None)
    monkeypatch.setattr(MicroBatch, "num_more", none)


def counts(each: IterationStats) -> IterationStats:
    return replace(each, time=0.0, latency_ms=0.0)


@pytest.mark.parametrize("seed", range(12))
def test_a_batch_that_goes_on_makes_the_plans_that_deciding_anew_makes(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = RecordingWorkload(seed).run()
    with monkeypatch.context() as patch:
        never_go_on(patch)
        anew = RecordingWorkload(seed).run()
    assert [replace(plan, goes_on=False) for plan in going_on.plans] == anew.plans
    told, expected = going_on.loop.iterations_since(0), anew.loop.iterations_since(0)
    assert list(map(counts, told)) == list(map(counts, expected))
    assert replace(going_on.loop.stats(), latency_ms=0.0) == replace(
        anew.loop.stats(), latency_ms=0.0
    )


def test_a_batch_goes_on_until_a_block_is_full_or_a_request_comes_or_ends() -> None:
    plans: list[StepPlan] = []

    class Recorder(FakeExecutor):
        def execute(self, plan: StepPlan) -> StepResult:
            plans.append(plan)
            return super().execute(plan)

    loop = Loop(Recorder(LIMITS), RuntimeConfig(enable_block_reuse=False))
    loop.submit(Request(1, (5, 6), 30))
    loop.submit(Request(2, (7, 8, 9), 9))
    for _ in range(14):
        loop.step()
    loop.submit(Request(3, (1,), 2))
    while loop.has_work:
        loop.step()
    # Positions 2 and 3 come first; request 1 fills a block at position 7, request 2 at 7, a step
    # earlier; it ends after step 9; request 3 arrives before step 15 and ends with step 16.
    assert [number for number, plan in enumerate(plans, 1) if not plan.goes_on] == [
        *(1, 2, 7, 8, 10, 15, 16, 17, 24)
    ]


def entry_at(step: int, request_id: int, start: int, sampling: SamplingParams) -> PlanEntry:
    blocks = list(range(5 * request_id, 5 * request_id + 4))
    return PlanEntry(request_id, (step + request_id,), start + step, blocks, 1, sampling)


def test_inputs_that_go_on_are_those_filled_anew() -> None:
    config = BuildConfig(4, 64, 64, 64, 1, 8)
    specs, _ = place_inputs(config)
    manifest = replace(make_manifest(), inputs=tuple(specs.values()))
    going_on, anew = StepInputs(manifest, LIMITS), StepInputs(manifest, LIMITS)
    samplings = SamplingParams(), SamplingParams(0.5, 0, 0.9, seed=3)
    for step in range(3):
        entries = (entry_at(step, 1, 9, samplings[0]), entry_at(step, 2, 17, samplings[1]))
        assert anew.fill(StepPlan(entries)) == 2
        assert going_on.fill(StepPlan(entries, goes_on=step > 0)) == 2
        np.testing.assert_array_equal(going_on.memory, anew.memory)


def test_a_step_of_many_tokens_lists_the_blocks_that_it_reads_and_writes_next() -> None:
    specs, _ = place_inputs(BuildConfig(4, 64, 64, 64, 1, 8))
    inputs = StepInputs(replace(make_manifest(), inputs=tuple(specs.values())), LIMITS)
    header, listed = inputs._at.header, inputs._cached_blocks
    decode = PlanEntry(1, (1,), 17, [4, 2, 9], 1, SamplingParams())
    inputs.fill(StepPlan((decode,)))
    assert header[abi.HEADER_CACHED_BLOCKS] == 0, "memory is the limit of small steps"
    chunk = PlanEntry(2, tuple(range(15)), 8, [6, 3, 5], 0, SamplingParams())
    inputs.fill(StepPlan((decode, chunk)))
    assert header[abi.HEADER_CACHED_BLOCKS] == 5
    # The last sequence comes first; numbers are one more, as block 0 is the null block.
    assert listed[:5].tolist() == [7, 4, 5, 3, 10]
