"""The loop's counters as TensorRT-LLM's `IterationStats`: a dictionary with its JSON keys.

Keys whose facts this runtime does not have are left out, never invented.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from tidemill.host.session import Session
from tidemill.runtime.loop import LoopStats

FOLLOW_SECONDS = 0.05


class StatsReader:
    """Tells each iteration at most once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._told_iteration = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the latest iteration's statistics, [] if they were told before."""
        stats = self._session.info().stats
        if stats.iteration == self._told_iteration:
            return []
        self._told_iteration = stats.iteration
        return [to_iteration_stats(stats)]

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Tell statistics until there has been no iteration for a while."""
        while news := self.read():
            yield news[0]
            await asyncio.sleep(FOLLOW_SECONDS)


def to_iteration_stats(stats: LoopStats) -> dict[str, Any]:
    """Name the counters as the reference does. Units: milliseconds, blocks, tokens."""
    scheduled = stats.num_context_requests + stats.num_generation_requests
    return {
        "iter": stats.iteration,
        "iterLatencyMS": stats.latency_ms,
        "numActiveRequests": stats.num_active_requests,
        "numQueuedRequests": stats.num_queued_requests,
        "numCompletedRequests": stats.total_completed_requests,
        "maxNumActiveRequests": stats.max_batch_size,
        "maxBatchSizeStatic": stats.max_batch_size,
        "maxBatchSizeRuntime": stats.max_batch_size,
        "maxNumTokensStatic": stats.max_num_tokens,
        "maxNumTokensRuntime": stats.max_num_tokens,
        "kvCacheStats": {
            "maxNumBlocks": stats.max_blocks,
            "freeNumBlocks": stats.free_blocks,
            "usedNumBlocks": stats.used_blocks,
            "tokensPerBlock": stats.tokens_per_block,
        },
        "inflightBatchingStats": {
            "numScheduledRequests": scheduled,
            "numContextRequests": stats.num_context_requests,
            "numGenRequests": stats.num_generation_requests,
            "numCtxTokens": stats.num_context_tokens,
        },
    }
