"""Counts what steps did: totals since the start, and the latest iterations one by one.

The loop notes each step; whoever wants figures reads them. Knows nothing of scheduling.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from tidemill.runtime.iteration_stats import BatchStats, IterationStats, KvCacheStats
from tidemill.runtime.kvcache.block_pool import BlockPool
from tidemill.runtime.kvcache.host_tier import HostCounters
from tidemill.runtime.request import FinishReason, TokenUpdate
from tidemill.runtime.scheduler import Scheduler
from tidemill.runtime.step import EngineLimits

_Counts = tuple[
    int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int
]  # fmt: skip
"""A step's raw counts, cheap to keep, and the same tuple while steps are steady. `_count` and
`_to_stats` have its names. Not a record: one of 17 fields takes 5.3 us to make instead of 2.2,
right after a native call (AMD EPYC, 2026-11-28), in every step in which a block is full."""


class StepLog:
    """Totals, and the latest `max_iterations` steps. Units: `total_*` since the start."""

    def __init__(self, limits: EngineLimits, pool: BlockPool, max_iterations: int) -> None:
        self._limits, self._pool = limits, pool
        self._steps: deque[tuple[float, int, float, float, _Counts]] = deque(maxlen=max_iterations)
        self._counts: _Counts = (0,) * 17
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
        self.latency_ms = latency_ms
        if scheduler.is_steady():
            self.total_output_tokens += len(updates)
        else:
            self._counts = self._count(scheduler, updates)
        self._steps.append(
            (time.time(), scheduler.register.iteration, latency_ms, queue_latency_ms, self._counts)
        )

    def note_ends(self, updates: Sequence[TokenUpdate]) -> None:
        """Take in last updates that came without a step."""
        self._note_updates(updates)

    def since(self, iteration: int) -> list[IterationStats]:
        """Return what is kept of the iterations after this one."""
        return [self._to_stats(*step) for step in self._steps if step[1] > iteration]

    def _to_stats(
        self, moment: float, number: int, latency_ms: float, queue_latency_ms: float, of: _Counts
    ) -> IterationStats:
        num_admitted, num_active, num_queued, num_completed, *of_cache_and_batch = of
        num_free, num_allocated, num_new, num_reused, num_missed, *rest = of_cache_and_batch
        num_host_used, num_offloaded, num_onboarded, *of_batch = rest
        limits, pool = self._limits, self._pool
        return IterationStats(
            time=moment,
            iteration=number,
            latency_ms=latency_ms,
            queue_latency_ms=queue_latency_ms,
            num_new_active_requests=num_admitted,
            num_active_requests=num_active,
            num_queued_requests=num_queued,
            num_completed_requests=num_completed,
            max_batch_size=limits.max_batch_size,
            max_num_tokens=limits.max_num_tokens,
            cache=KvCacheStats(
                max_num_blocks=pool.num_blocks,
                free_num_blocks=num_free,
                tokens_per_block=pool.tokens_per_block,
                alloc_total_blocks=num_allocated,
                alloc_new_blocks=num_new,
                reused_blocks=num_reused,
                missed_blocks=num_missed,
                host=HostCounters(
                    limits.num_host_blocks, num_host_used, num_offloaded, num_onboarded
                ),
            ),
            batch=BatchStats(*of_batch),
        )

    def _count(self, scheduler: Scheduler, updates: Sequence[TokenUpdate]) -> _Counts:
        batch, counters, pool = scheduler.latest, self._pool.counters, self._pool
        host = pool.host_counters
        self.total_prompt_tokens += batch.num_context_tokens
        num_paused = len(scheduler.register.active.paused)
        self.total_paused += num_paused
        num_new_tokens, num_completed = self._note_updates(updates)
        return (
            len(scheduler.register.active.admitted),
            len(scheduler.register.active),
            len(scheduler.register.queue),
            num_completed,
            pool.num_free,
            counters.alloc_total,
            counters.alloc_new,
            counters.reused,
            counters.missed,
            host.num_used,
            host.num_offloaded,
            host.num_onboarded,
            batch.num_context_requests,
            batch.num_generation_requests,
            num_paused,
            batch.num_context_tokens,
            max(0, num_new_tokens - batch.num_started),
        )

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
