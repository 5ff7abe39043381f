"""A long prompt enters in chunks that keep a step under its stated time."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tidemill.runtime.config import ChunkingPolicy, RuntimeConfig
from tidemill.runtime.kvcache.block_pool import BlockPool
from tidemill.runtime.request import Request
from tidemill.runtime.scheduler import Scheduler
from tidemill.runtime.simulation import FakeExecutor
from tidemill.runtime.step import EngineLimits
from tidemill.runtime.step_pace import StepPace

LIMITS = EngineLimits(
    max_batch_size=8,
    max_num_tokens=512,
    max_seq_len=2048,
    max_input_len=2047,
    tokens_per_block=16,
    num_blocks=400,
    vocab_size=97,
)
MS_PER_STEP, MS_PER_TOKEN = 8.0, 0.5
NUM_PROMPT = 1500


class Step(NamedTuple):
    num_generation_requests: int
    num_context_tokens: int


def steps_while_a_prompt_enters(config: RuntimeConfig, slowdown: float = 1.0) -> list[float]:
    """Return what each step took on a machine of those costs, from the long prompt's first on."""
    pool = BlockPool(LIMITS.num_blocks, LIMITS.tokens_per_block)
    scheduler, executor = Scheduler(LIMITS, pool, config), FakeExecutor(LIMITS)
    scheduler.add(Request(0, (5, 6, 7), 400))
    took_ms: list[float] = []
    num_left = NUM_PROMPT
    for step in range(300):
        if step == 3:
            scheduler.add(Request(1, (9,) * NUM_PROMPT, 2))
        plan = scheduler.plan()
        scheduler.commit(executor.execute(plan))
        counts = {entry.request_id: len(entry.tokens) for entry in plan.entries}
        assert counts[0] == 1 or step == 0, "a running request was left out"
        step_ms = MS_PER_STEP + MS_PER_TOKEN * plan.num_tokens * (slowdown if step > 20 else 1.0)
        scheduler.pace.note(scheduler.latest, step_ms)
        if step >= 3:
            took_ms.append(step_ms)
            num_left -= counts.get(1, 0)
        if num_left == 0:
            return took_ms
    raise AssertionError("the prompt never entered")


def test_steps_stay_under_the_stated_time_while_a_long_prompt_enters() -> None:
    took_ms = steps_while_a_prompt_enters(RuntimeConfig(max_step_ms=60.0))
    assert max(took_ms) <= 60.0
    # Chunks end on block borders, so up to one block of each step is left unused.
    assert min(took_ms[2:-1]) > 60.0 - MS_PER_TOKEN * 2 * LIMITS.tokens_per_block


def test_without_a_stated_time_a_step_takes_as_many_tokens_as_the_engine() -> None:
    took_ms = steps_while_a_prompt_enters(RuntimeConfig(max_step_ms=0.0))
    assert len(took_ms) == 3 and max(took_ms) > 240.0


def test_pace_follows_a_machine_that_slows_down() -> None:
    took_ms = steps_while_a_prompt_enters(RuntimeConfig(max_step_ms=40.0), slowdown=3.0)
    assert max(took_ms[-5:]) <= 40.0


def test_steps_stay_under_the_stated_time_when_most_requests_end_while_prompts_enter() -> None:
    pace = StepPace(RuntimeConfig(max_step_ms=100.0), LIMITS.tokens_per_block)

    def take(num_generation: int) -> tuple[int, float]:
        num_context = pace.max_context_tokens(num_generation)
        num_context = 500 if num_context is None else num_context
        step_ms = (150.0 if num_generation > 1 else 20.0) + 0.3 * num_context
        pace.note(Step(num_generation, num_context), step_ms)
        return num_context, step_ms

    pace.note(Step(32, 0), 150.0)
    # Alone over the stated time, they let prompts take as long again.
    assert [take(32)[0] for _ in range(5)] == [500] * 5
    steps = [take(1) for _ in range(5)]
    assert max(step_ms for _, step_ms in steps) <= 100.0
    assert [num_context for num_context, _ in steps] == [0, 266, 266, 266, 266]


def test_prompt_enters_while_all_the_others_end_one_by_one() -> None:
    scheduler = Scheduler(LIMITS, BlockPool(400, 16), RuntimeConfig(max_step_ms=10.0))
    executor = FakeExecutor(LIMITS)
    for index in range(7):
        scheduler.add(Request(index, (5, index), 8 + 4 * index))
    for step in range(80):
        if step == 4:
            scheduler.add(Request(7, (9,) * NUM_PROMPT, 1))
        plan = scheduler.plan()
        scheduler.commit(executor.execute(plan))
        scheduler.pace.note(scheduler.latest, 1.0 + 0.2 * plan.num_tokens)
        if not scheduler.knows(7) and step >= 4:
            return
    raise AssertionError("the prompt never entered")


def test_time_too_short_for_any_prompt_still_lets_a_block_enter() -> None:
    took_ms = steps_while_a_prompt_enters(RuntimeConfig(max_step_ms=0.01))
    assert len(took_ms) == -(-NUM_PROMPT // LIMITS.tokens_per_block)


def test_prompts_may_take_as_long_as_the_running_requests() -> None:
    pace = StepPace(RuntimeConfig(max_step_ms=10.0), least_tokens=1)
    pace.note(Step(0, 100), 50.0)
    pace.note(Step(8, 0), 30.0)
    assert pace.max_context_tokens(8) == 60


def test_nothing_running_means_no_bound() -> None:
    pace = StepPace(RuntimeConfig(max_step_ms=10.0), least_tokens=1)
    pace.note(Step(0, 100), 50.0)
    assert pace.max_context_tokens(0) is None


def test_few_tokens_do_not_spoil_what_is_known() -> None:
    pace = StepPace(RuntimeConfig(max_step_ms=10.0), least_tokens=16)
    pace.note(Step(0, 100), 50.0)
    pace.note(Step(0, 2), 9.0)
    assert pace.max_context_tokens(1) == 20


@pytest.mark.parametrize("max_step_ms", [0.0, 1.0])
def test_prompts_that_are_never_cut_are_not_cut_for_the_pace(max_step_ms: float) -> None:
    config = RuntimeConfig(chunking=ChunkingPolicy.OFF, max_step_ms=max_step_ms)
    pool = BlockPool(LIMITS.num_blocks, LIMITS.tokens_per_block)
    scheduler, executor = Scheduler(LIMITS, pool, config), FakeExecutor(LIMITS)
    scheduler.add(Request(0, (5, 6, 7), 9))
    scheduler.commit(executor.execute(scheduler.plan()))
    scheduler.pace.note(scheduler.latest, 50.0)
    scheduler.add(Request(1, (9,) * 300, 2))
    assert [len(entry.tokens) for entry in scheduler.plan().entries] == [1, 300]
