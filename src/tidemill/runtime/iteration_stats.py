"""What each iteration held and cost, in the JSON keys of TensorRT-LLM's executor.

In come counts as they stand after a step; out come `IterationStats`, which know their JSON form.
Knows nothing of scheduling or messages.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tidemill.runtime.kvcache.host_tier import NO_HOST_COUNTERS, HostCounters


@dataclass(frozen=True, slots=True)
class KvCacheStats:
    """The cache after a step. Units: blocks; `alloc_*`, `reused` and `missed` since the start."""

    max_num_blocks: int
    free_num_blocks: int
    tokens_per_block: int
    alloc_total_blocks: int
    alloc_new_blocks: int
    reused_blocks: int
    missed_blocks: int
    host: HostCounters = NO_HOST_COUNTERS

    def to_json(self) -> dict[str, Any]:
        """Return the reference's keys; after them, where there is a host tier, four of ours."""
        host = self.host
        ours = {
            "hostMaxNumBlocks": host.num_blocks,
            "hostUsedNumBlocks": host.num_used,
            "offloadedBlocks": host.num_offloaded,
            "onboardedBlocks": host.num_onboarded,
        }
        looked_for = self.reused_blocks + self.missed_blocks
        return {
            "maxNumBlocks": self.max_num_blocks,
            "freeNumBlocks": self.free_num_blocks,
            "usedNumBlocks": self.max_num_blocks - self.free_num_blocks,
            "tokensPerBlock": self.tokens_per_block,
            "allocTotalBlocks": self.alloc_total_blocks,
            "allocNewBlocks": self.alloc_new_blocks,
            "reusedBlocks": self.reused_blocks,
            "missedBlocks": self.missed_blocks,
            "cacheHitRate": self.reused_blocks / looked_for if looked_for else 0.0,
            **(ours if host.num_blocks else {}),
        }


@dataclass(frozen=True, slots=True)
class BatchStats:
    """The entries of a step. Units: requests and tokens."""

    num_context_requests: int
    num_gen_requests: int
    num_paused_requests: int
    num_ctx_tokens: int
    num_new_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return the reference's keys of in-flight batching."""
        num_drawing = self.num_gen_requests or 1
        return {
            "numScheduledRequests": self.num_context_requests + self.num_gen_requests,
            "numContextRequests": self.num_context_requests,
            "numGenRequests": self.num_gen_requests,
            "numPausedRequests": self.num_paused_requests,
            "numCtxTokens": self.num_ctx_tokens,
            "microBatchId": 0,
            "avgNumDecodedTokensPerIter": self.num_new_tokens / num_drawing,
        }


@dataclass(frozen=True, slots=True)
class IterationStats:
    """One iteration. Units: `time` is seconds since 1970; `*_ms` milliseconds.

    `BatchStats.num_new_tokens` counts those of generation requests only.
    """

    time: float
    iteration: int
    latency_ms: float
    queue_latency_ms: float
    num_new_active_requests: int
    num_active_requests: int
    num_queued_requests: int
    num_completed_requests: int
    max_batch_size: int
    max_num_tokens: int
    cache: KvCacheStats
    batch: BatchStats

    def to_json(self, memory_bytes: int = 0, is_static: bool = False) -> dict[str, Any]:
        """Return the reference's keys; `memory_bytes` is what the process holds."""
        seconds = time.strftime("%m-%d-%Y %H:%M:%S", time.localtime(self.time))
        return {
            "timestamp": f"{seconds}.{int(self.time % 1 * 1e6):06d}",
            "iter": self.iteration,
            "iterLatencyMS": self.latency_ms,
            "newActiveRequestsQueueLatencyMS": self.queue_latency_ms,
            "numNewActiveRequests": self.num_new_active_requests,
            "numActiveRequests": self.num_active_requests,
            "numQueuedRequests": self.num_queued_requests,
            "numCompletedRequests": self.num_completed_requests,
            "maxNumActiveRequests": self.max_batch_size,
            "maxBatchSizeStatic": self.max_batch_size,
            "maxBatchSizeTunerRecommended": 0,
            "maxBatchSizeRuntime": self.max_batch_size,
            "maxNumTokensStatic": self.max_num_tokens,
            "maxNumTokensTunerRecommended": 0,
            "maxNumTokensRuntime": self.max_num_tokens,
            "gpuMemUsage": 0,
            "cpuMemUsage": memory_bytes,
            "pinnedMemUsage": 0,
            "kvCacheStats": self.cache.to_json(),
            "staticBatchingStats": self._static_json() if is_static else None,
            "inflightBatchingStats": None if is_static else self.batch.to_json(),
        }

    def _static_json(self) -> dict[str, Any]:
        batch = self.batch
        num_empty = self.max_batch_size - batch.num_context_requests - batch.num_gen_requests
        return {
            "numScheduledRequests": batch.num_context_requests + batch.num_gen_requests,
            "numContextRequests": batch.num_context_requests,
            "numCtxTokens": batch.num_ctx_tokens,
            "numGenTokens": batch.num_new_tokens,
            "emptyGenSlots": num_empty,
        }
