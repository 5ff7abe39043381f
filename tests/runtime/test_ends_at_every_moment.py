"""Every request of a crowd is cancelled, or runs out of time, at every step of the crowd's life.

The crowd waits for a shared prefix, is cut into chunks, paused and resumed; so ends meet requests
that queue, wait, read, write and are paused. Whoever is left gets its tokens alone, and nothing
stays behind.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.runtime.test_block_reuse import prompt
from tests.runtime.watchful_executor import WatchfulExecutor, tokens_alone
from tidemill.runtime.config import CapacityPolicy, RuntimeConfig
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import FinishReason, Request
from tidemill.runtime.statistics import RequestStage
from tidemill.runtime.step import EngineLimits

LIMITS = EngineLimits(3, 8, 40, 39, 4, 8, 97, num_host_blocks=3)
REQUESTS = (
    Request(0, prompt(14), 9),
    Request(1, prompt(15, 50, 51), 7),
    Request(2, (3,) * 9, 12),
    Request(3, (4,) * 6, 5, priority=0.9),
)
CONFIG = RuntimeConfig(CapacityPolicy.MAX_UTILIZATION, event_buffer_max_size=1000)
Moment = tuple[str, bool]


class Life:
    """One crowd's life; `victim` ends at step `at`, by cancelling or because its time is over."""

    def __init__(self, victim: int, at: int, way: str) -> None:
        self.victim, self.at, self.way, self.step = victim, at, way, 0
        self.executor = WatchfulExecutor(LIMITS, self.interrupt)
        self.loop = Loop(self.executor, CONFIG, lambda: float(self.step))
        self.tokens: dict[int, list[int]] = {}
        self.reasons: dict[int, FinishReason] = {}
        self.moment: Moment | None = None

    def interrupt(self) -> None:
        """In the middle of a step, before and after it is executed."""
        if self.way == "in a step" and self.step == self.at:
            self.loop.cancel(self.victim)

    def run(self) -> None:
        for request in REQUESTS:
            is_brief = self.way == "time" and request.request_id == self.victim
            given = replace(request, allotted_time_ms=1e3 * self.at) if is_brief else request
            self.executor.expect(given)
            self.loop.submit(given)
            self.tokens[request.request_id] = []
        while self.loop.has_work:
            self.look()
            if self.way == "between steps" and self.step == self.at:
                self.loop.cancel(self.victim)
            for update in self.loop.step():
                self.tokens[update.request_id] += update.new_tokens
                if update.finish_reason is not FinishReason.NOT_FINISHED:
                    self.reasons[update.request_id] = update.finish_reason
            self.loop.check()
            self.step += 1

    def look(self) -> None:
        """Note where the victim is when its end comes, and whether it had been paused."""
        for stats in self.loop.request_stats():
            if stats.request_id == self.victim and self.step == self.at:
                self.moment = stats.stage.name, stats.metrics.num_pauses > 0


@pytest.mark.parametrize("way", ["between steps", "in a step", "time"])
def test_an_end_at_any_moment_touches_nobody_else(way: str) -> None:
    moments: set[Moment | None] = set()
    for victim in range(len(REQUESTS)):
        for at in range(1, 40):
            life = Life(victim, at, way)
            life.run()
            moments.add(life.moment)
            stats = life.loop.stats()
            assert (stats.used_blocks, stats.num_active_requests, stats.num_queued_requests) == (
                0, 0, 0,
            )  # fmt: skip
            for request in REQUESTS:
                number = request.request_id
                expected, reason = tokens_alone(request, LIMITS)
                if life.reasons[number] in (FinishReason.CANCELLED, FinishReason.TIMED_OUT):
                    assert number == victim
                    assert life.tokens[number] == expected[: len(life.tokens[number])]
                else:
                    assert (life.tokens[number], life.reasons[number]) == (expected, reason)
    stages = [stage.name for stage in RequestStage]
    assert {(stage, False) for stage in stages} <= moments, "somewhere it was not looked"
    assert ("QUEUED", True) in moments, "nobody was paused"
