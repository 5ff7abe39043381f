"""The engine loop: plan a step, execute it, commit the result.

In come validated requests and cancellations; out come token updates, one list a step. It joins
scheduler, block pool and executor, and counts what happened. One thread owns it. It knows nothing
of text, sockets or who asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tidemill.base.errors import InvalidRequestError, QueueFullError
from tidemill.runtime.config import ChunkingPolicy, RuntimeConfig
from tidemill.runtime.events import RequestEvent
from tidemill.runtime.kvcache.block_pool import BlockPool, CacheCounters
from tidemill.runtime.micro_batch import Drafter
from tidemill.runtime.request import FinishReason, Request, TokenUpdate
from tidemill.runtime.scheduler import DEFAULT_CONFIG, Scheduler
from tidemill.runtime.step import EngineLimits, Executor, StepResult
from tidemill.runtime.validate_request import validate_request


@dataclass(frozen=True)
class LoopStats:
    """What the loop did so far, what its latest step held, and what the cache holds now.

    Units: times in milliseconds; `num_context_*` and `num_generation_requests` are of the latest
    step, `total_*` since the start.
    """

    iteration: int
    latency_ms: float
    num_active_requests: int
    num_queued_requests: int
    num_context_requests: int
    num_generation_requests: int
    num_context_tokens: int
    total_completed_requests: int
    total_prompt_tokens: int
    total_output_tokens: int
    max_batch_size: int
    max_num_tokens: int
    tokens_per_block: int
    max_blocks: int
    used_blocks: int
    free_blocks: int


class Loop:
    """Runs requests on an executor; `step` until `has_work` is false."""

    def __init__(
        self,
        executor: Executor,
        config: RuntimeConfig = DEFAULT_CONFIG,
        clock: Callable[[], float] = time.monotonic,
        drafter: Drafter | None = None,
    ) -> None:
        self._executor = executor
        self._config = config
        self.limits: EngineLimits = executor.limits
        self._pool = BlockPool(self.limits.num_blocks, self.limits.tokens_per_block, clock)
        self._scheduler = Scheduler(self.limits, self._pool, config, clock, drafter)
        self._iteration = 0
        self._latency_ms = 0.0
        self._total_completed = 0
        self._total_prompt_tokens = 0
        self._total_output_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do or tell anything."""
        return self._scheduler.has_work

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises: InvalidRequestError when the engine can never serve it, QueueFullError when the
        queue has no room now.
        """
        if self._scheduler.knows(request.request_id):
            raise InvalidRequestError(
                "a request of this id is in flight",
                where=f"request {request.request_id}",
                hint="give each request an id of its own",
            )
        validate_request(request, self.limits, self._config.chunking is not ChunkingPolicy.OFF)
        if 0 < self._config.max_queue_size <= self._scheduler.num_queued:
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
        start = time.perf_counter()
        plan = self._scheduler.plan()
        if not plan.entries:
            return self._scheduler.commit(StepResult(()))
        result = self._executor.execute(plan)
        self._scheduler.latest.observe(result.observations)
        updates = self._scheduler.commit(result)
        self._iteration += 1
        self._latency_ms = (time.perf_counter() - start) * 1e3
        self._total_prompt_tokens += self._scheduler.latest.num_context_tokens
        for update in updates:
            self._total_output_tokens += len(update.new_tokens)
            self._total_completed += update.finish_reason is not FinishReason.NOT_FINISHED
        return updates

    def stats(self) -> LoopStats:
        """Tell counters and the cache's fill."""
        scheduler, pool, limits = self._scheduler, self._pool, self.limits
        return LoopStats(
            iteration=self._iteration,
            latency_ms=self._latency_ms,
            num_active_requests=scheduler.num_active,
            num_queued_requests=scheduler.num_queued,
            num_context_requests=scheduler.latest.num_context_requests,
            num_generation_requests=scheduler.latest.num_generation_requests,
            num_context_tokens=scheduler.latest.num_context_tokens,
            total_completed_requests=self._total_completed,
            total_prompt_tokens=self._total_prompt_tokens,
            total_output_tokens=self._total_output_tokens,
            max_batch_size=limits.max_batch_size,
            max_num_tokens=limits.max_num_tokens,
            tokens_per_block=limits.tokens_per_block,
            max_blocks=pool.num_blocks,
            used_blocks=pool.num_used,
            free_blocks=pool.num_free,
        )

    @property
    def cache_counters(self) -> CacheCounters:
        """What the cache gave since the start."""
        return self._pool.counters

    def take_events(self) -> list[RequestEvent]:
        """Hand over what happened to requests, as far as it was kept."""
        return self._scheduler.take_events()

    def check(self) -> None:
        """Recompute all invariants of scheduler and block pool."""
        self._scheduler.check()

    def close(self) -> None:
        """Let go of the executor."""
        self._executor.close()
