"""The engine loop: plan a step, execute it, commit the result.

In come validated requests and cancellations; out come token updates, one list a step. It joins
scheduler, block pool and executor, and counts what happened. One thread owns it. It knows nothing
of text, sockets or who asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tidemill.base.errors import QueueFullError
from tidemill.runtime.config import (
    DEFAULT_CONFIG,
    CapacityPolicy,
    ChunkingPolicy,
    RuntimeConfig,
)
from tidemill.runtime.events import RequestEvent
from tidemill.runtime.iteration_stats import IterationStats
from tidemill.runtime.kvcache.block_pool import BlockPool, CacheCounters
from tidemill.runtime.kvcache.host_tier import HostRoom
from tidemill.runtime.loop_stats import LoopStats
from tidemill.runtime.micro_batch import Drafter
from tidemill.runtime.ngram_lookup import NgramDrafter
from tidemill.runtime.request import Request, TokenUpdate
from tidemill.runtime.request_state import RequestState
from tidemill.runtime.scheduler import Scheduler
from tidemill.runtime.statistics import RequestStats
from tidemill.runtime.step import EngineLimits, Executor, StepResult
from tidemill.runtime.step_log import StepLog
from tidemill.runtime.validate_request import already_in_flight, validate_request


class Loop:
    """Runs requests on an executor; `step` until `has_work` is false."""

    def __init__(
        self,
        executor: Executor,
        config: RuntimeConfig = DEFAULT_CONFIG,
        clock: Callable[[], float] = time.monotonic,
        drafter: Drafter | None = None,
    ) -> None:
        """Take an executor; `clock` gives seconds, `drafter` replaces the n-gram lookup."""
        if drafter is None and config.max_draft_len:
            drafter = NgramDrafter(config.max_matching_ngram_size)
        self._executor = executor
        self._config = config
        self._clock = clock
        self.limits: EngineLimits = executor.limits
        self._pool = BlockPool(
            self.limits.num_blocks,
            self.limits.tokens_per_block,
            clock,
            self.limits.attention_window,
            HostRoom(self.limits.num_host_blocks, config.secondary_offload_min_priority),
        )
        self._scheduler = Scheduler(self.limits, self._pool, config, clock, drafter)
        self._log = StepLog(self.limits, self._pool, config.iter_stats_max_iterations)
        self._is_arranged = False

    @property
    def has_work(self) -> bool:
        """Whether a step would do or tell anything."""
        return self._scheduler.has_work

    @property
    def is_static_batching(self) -> bool:
        return self._config.policy is CapacityPolicy.STATIC_BATCH

    @property
    def cache_counters(self) -> CacheCounters:
        """What the cache gave since the start."""
        return self._pool.counters

    def submit(self, request: Request, is_bounded: bool = True) -> None:
        """Queue a request; one that is not bounded belongs to what was let in, and always has room.

        Raises: InvalidRequestError when the engine can never serve it, QueueFullError when the
        queue has no room now.
        """
        if self._scheduler.knows(request.request_id):
            raise already_in_flight(request.request_id)
        validate_request(request, self.limits, self._config.chunking is not ChunkingPolicy.OFF)
        num_queued = len(self._scheduler.register.queue)
        if is_bounded and 0 < self._config.max_queue_size <= num_queued:
            raise QueueFullError(
                f"Maximum queue size of {self._config.max_queue_size} has been reached,"
                " please try again later",
                where=f"request {request.request_id}",
            )
        self._scheduler.add(request)

    def cancel(self, request_id: int) -> None:
        """End a request at its next commit; unknown and ended requests are no error."""
        self._scheduler.cancel(request_id)

    def step(self) -> list[TokenUpdate]:
        """Advance every request that can advance; [] when idle."""
        # The first token after a start waits for nothing.
        if not self._is_arranged and self._log.total_output_tokens:
            self.arrange_memory()
        start = time.perf_counter()
        plan = self._scheduler.plan()
        if not plan.entries:
            updates = self._scheduler.commit(StepResult(()))
            self._log.note_ends(updates)
            return updates
        admitted = self._scheduler.register.active.admitted
        queue_latency_ms = self._queue_latency_ms(admitted) if admitted else 0.0
        result = self._executor.execute(plan)
        updates = self._scheduler.commit(result)
        latency_ms = (time.perf_counter() - start) * 1e3
        self._scheduler.pace.note(self._scheduler.latest, latency_ms)
        self._log.note(self._scheduler, updates, latency_ms, queue_latency_ms)
        return updates

    def arrange_memory(self) -> bool:
        """Make later steps faster, for some milliseconds; returns whether more can be done now."""
        is_more = not self._is_arranged and self._executor.arrange_memory()
        self._is_arranged = not is_more and self._log.total_output_tokens > 0
        return is_more

    def stats(self) -> LoopStats:
        """Tell counters and the cache's fill."""
        scheduler, pool, limits, log = self._scheduler, self._pool, self.limits, self._log
        return LoopStats(
            iteration=scheduler.register.iteration,
            latency_ms=log.latency_ms,
            num_active_requests=len(scheduler.register.active),
            num_queued_requests=len(scheduler.register.queue),
            num_context_requests=scheduler.latest.num_context_requests,
            num_generation_requests=scheduler.latest.num_generation_requests,
            num_context_tokens=scheduler.latest.num_context_tokens,
            total_completed_requests=log.total_completed,
            total_prompt_tokens=log.total_prompt_tokens,
            total_output_tokens=log.total_output_tokens,
            max_batch_size=limits.max_batch_size,
            max_num_tokens=limits.max_num_tokens,
            tokens_per_block=limits.tokens_per_block,
            max_blocks=pool.num_blocks,
            used_blocks=pool.num_used,
            free_blocks=pool.num_free,
            total_cancelled_requests=log.total_cancelled,
            total_timed_out_requests=log.total_timed_out,
            total_paused_requests=log.total_paused,
            total_draft_tokens=log.total_draft_tokens,
            total_accepted_draft_tokens=log.total_accepted_draft_tokens,
            alloc_total_blocks=pool.counters.alloc_total,
            alloc_new_blocks=pool.counters.alloc_new,
            reused_blocks=pool.counters.reused,
            missed_blocks=pool.counters.missed,
        )

    def iterations_since(self, iteration: int) -> list[IterationStats]:
        """Tell of each iteration after this one, as far back as they are kept."""
        return self._log.since(iteration)

    def request_stats(self) -> list[RequestStats]:
        """Tell where each request is that has not ended."""
        return self._scheduler.request_stats()

    def events_since(self, number: int) -> list[RequestEvent]:
        """Tell what happened to requests after an event, as far as it is kept."""
        return self._scheduler.register.events.since(number)

    def check(self) -> None:
        """Recompute all invariants of scheduler and block pool."""
        self._scheduler.check()

    def close(self) -> None:
        """Let go of the executor."""
        self._executor.close()

    def _queue_latency_ms(self, admitted: Sequence[RequestState]) -> float:
        """How long the requests that join in this step have waited in total."""
        now = self._clock()
        return sum(now - state.metrics.arrival_time for state in admitted) * 1e3
