"""What the engine loop counts, as it tells it.

Apart from the loop, for those who only hear of it: a frontend needs none of the runtime.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoopStats:
    """What the loop did so far, what its latest step held, and what the cache holds now.

    Units: times in milliseconds; `num_context_*` and `num_generation_requests` are of the latest
    step, `total_*` since the start, as are the counts of blocks allocated, reused and missed.
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
    total_cancelled_requests: int = 0
    total_timed_out_requests: int = 0
    total_paused_requests: int = 0
    total_draft_tokens: int = 0
    total_accepted_draft_tokens: int = 0
    alloc_total_blocks: int = 0
    alloc_new_blocks: int = 0
    reused_blocks: int = 0
    missed_blocks: int = 0
