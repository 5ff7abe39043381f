"""Counts what steps did: totals since the start, and the latest iterations one by one.

The loop notes each step; whoever wants figures reads them. Knows nothing of scheduling.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from tidemill.runtime.iteration_stats import BatchStats, IterationStats, KvCacheStats
from tidemill.runtime.kvcache.block_pool import BlockPool
from tidemill.runtime.request import FinishReason, TokenUpdate
from tidemill.runtime.scheduler import Scheduler
from tidemill.runtime.step import EngineLimits


class _Step(NamedTuple):
    """The raw counts of a step, cheap to keep; units as in `IterationStats`."""

    time: float
    iteration: int
    latency_ms: float
    queue_latency_ms: float
    num_new: int
    num_active: int
    num_queued: int
    num_completed: int
    cache: tuple[int, int, int, int, int]
    batch: tuple[int, int, int, int, int]


class StepLog:
    """Totals, and the latest `max_iterations` steps. Units: `total_*` since the start."""

    def __init__(self, limits: EngineLimits, pool: BlockPool, max_iterations: int) -> None:
        self._limits, self._pool = limits, pool
        self._steps: deque[_Step] = deque(maxlen=max_iterations)
        self.latency_ms = 0.0
        self.total_completed = 0
        self.total_cancelled = 0
        self.total_timed_out = 0
        self.total_prompt_tokens = 0
        self.total_output_tokens = 0
        self.total_paused = 0
        self.total_draft_tokens = 0
        self.total_accepted_draft_tokens = 0

    def note(
        self,
        scheduler: Scheduler,
        updates: Sequence[TokenUpdate],
        latency_ms: float,
        queue_latency_ms: float,
    ) -> None:
        """Take in a committed step."""
        batch, counters, pool = scheduler.latest, self._pool.counters, self._pool
        self.latency_ms = latency_ms
        self.total_prompt_tokens += batch.num_context_tokens
        self.total_paused += len(scheduler.active.paused)
        num_new_tokens, num_completed = self._note_updates(updates)
        num_started = batch.num_started
        self._steps.append(
            _Step(
                time.time(),
                scheduler.iteration,
                latency_ms,
                queue_latency_ms,
                len(scheduler.active.admitted),
                scheduler.num_active,
                scheduler.num_queued,
                num_completed,
                (
                    pool.num_free,
                    counters.alloc_total,
                    counters.alloc_new,
                    counters.reused,
                    counters.missed,
                ),
                (
                    batch.num_context_requests,
                    batch.num_generation_requests,
                    len(scheduler.active.paused),
                    batch.num_context_tokens,
                    max(0, num_new_tokens - num_started),
                ),
            )
        )

    def note_ends(self, updates: Sequence[TokenUpdate]) -> None:
        """Take in last updates that came without a step."""
        self._note_updates(updates)

    def since(self, iteration: int) -> list[IterationStats]:
        """Return what is kept of the iterations after this one."""
        limits, pool = self._limits, self._pool
        return [
            IterationStats(
                *step[:8],
                limits.max_batch_size,
                limits.max_num_tokens,
                KvCacheStats(
                    pool.num_blocks, step.cache[0], pool.tokens_per_block, *step.cache[1:]
                ),
                BatchStats(*step.batch),
            )
            for step in self._steps
            if step.iteration > iteration
        ]

    def _note_updates(self, updates: Sequence[TokenUpdate]) -> tuple[int, int]:
        num_tokens = num_completed = 0
        for update in updates:
            num_tokens += len(update.new_tokens)
            if update.finish_reason is not FinishReason.NOT_FINISHED:
                num_completed += 1
                self._note_end(update)
        self.total_output_tokens += num_tokens
        self.total_completed += num_completed
        return num_tokens, num_completed

    def _note_end(self, update: TokenUpdate) -> None:
        self.total_cancelled += update.finish_reason is FinishReason.CANCELLED
        self.total_timed_out += update.finish_reason is FinishReason.TIMED_OUT
        if update.metrics is not None:
            self.total_draft_tokens += update.metrics.num_draft_tokens
            self.total_accepted_draft_tokens += update.metrics.num_accepted_draft_tokens
