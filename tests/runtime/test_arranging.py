"""A loop arranges memory between steps: not before the first token, and no longer than needed."""

from __future__ import annotations

from tidemill.runtime.loop import Loop
from tidemill.runtime.request import Request
from tidemill.runtime.simulation import FakeExecutor
from tidemill.runtime.step import EngineLimits, StepPlan, StepResult

LIMITS = EngineLimits(
    max_batch_size=2,
    max_num_tokens=8,
    max_seq_len=64,
    max_input_len=32,
    tokens_per_block=8,
    num_blocks=16,
    vocab_size=31,
)


class ArrangingExecutor(FakeExecutor):
    """Has three calls' worth to arrange."""

    def __init__(self) -> None:
        super().__init__(LIMITS)
        self.calls: list[str] = []

    def execute(self, plan: StepPlan) -> StepResult:
        self.calls.append("step")
        return super().execute(plan)

    def arrange_memory(self) -> bool:
        self.calls.append("arrange")
        return self.calls.count("arrange") < 3


def test_memory_is_arranged_before_the_steps_that_follow_the_first_token() -> None:
    executor = ArrangingExecutor()
    loop = Loop(executor)
    loop.submit(Request(1, tuple(range(20)), 6))
    while loop.has_work:
        loop.step()
    # The prompt takes three steps.
    assert executor.calls == ["step"] * 3 + ["arrange", "step"] * 3 + ["step"] * 2
    assert not loop.arrange_memory()


def test_idle_time_before_the_first_step_arranges_what_can_be_and_later_the_rest() -> None:
    executor = ArrangingExecutor()
    loop = Loop(executor)
    assert [loop.arrange_memory() for _ in range(3)] == [True, True, False]
    loop.submit(Request(1, (5,), 2))
    while loop.has_work:
        loop.step()
    assert executor.calls[3:] == ["step", "arrange", "step"]
    assert not loop.arrange_memory()
    assert len(executor.calls) == 6
