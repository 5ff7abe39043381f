"""What one request cost: times, iterations, blocks and drafts.

Filled by the scheduler while the request lives, handed out with its last update. Names follow
TensorRT-LLM's request perf metrics. Knows nothing of messages.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RequestMetrics:
    """Times in seconds on the loop's clock, None where it did not happen; counts since arrival."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    first_iter: int | None = None
    last_iter: int | None = None
    num_allocated_blocks: int = 0
    num_new_blocks: int = 0
    num_reused_blocks: int = 0
    num_missed_blocks: int = 0
    num_pauses: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
