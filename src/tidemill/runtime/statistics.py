"""What one request cost: times, iterations, blocks and guesses; and where it is now.

Filled by the scheduler while the request lives, handed out with its last update. The JSON keys are
those of TensorRT-LLM's request perf metrics and request stats. Knows nothing of messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


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

    def add(self, later: RequestMetrics) -> None:
        """Count in a later request for the same answer: a round of a beam search."""
        if later.last_token_time is not None:  # it may have ended before it drew one
            self.last_token_time = later.last_token_time
        self.last_iter = later.last_iter
        self.num_allocated_blocks += later.num_allocated_blocks
        self.num_new_blocks += later.num_new_blocks
        self.num_reused_blocks += later.num_reused_blocks
        self.num_missed_blocks += later.num_missed_blocks
        self.num_pauses += later.num_pauses
        self.num_draft_tokens += later.num_draft_tokens
        self.num_accepted_draft_tokens += later.num_accepted_draft_tokens

    @property
    def acceptance_rate(self) -> float:
        """Share of the guesses that were right."""
        drafts = self.num_draft_tokens
        return self.num_accepted_draft_tokens / drafts if drafts else 0.0

    @property
    def hit_rate(self) -> float:
        """Share of the blocks looked for that were reused."""
        looked_for = self.num_reused_blocks + self.num_missed_blocks
        return self.num_reused_blocks / looked_for if looked_for else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the reference's keys of request perf metrics."""
        return {
            "timingMetrics": {
                "arrivalTime": self.arrival_time,
                "firstScheduledTime": self.first_scheduled_time,
                "firstTokenTime": self.first_token_time,
                "lastTokenTime": self.last_token_time,
            },
            "kvCacheMetrics": {
                "numTotalAllocatedBlocks": self.num_allocated_blocks,
                "numNewAllocatedBlocks": self.num_new_blocks,
                "numReusedBlocks": self.num_reused_blocks,
                "numMissedBlocks": self.num_missed_blocks,
                "kvCacheHitRate": self.hit_rate,
            },
            "speculativeDecoding": {
                "acceptanceRate": self.acceptance_rate,
                "totalAcceptedDraftTokens": self.num_accepted_draft_tokens,
                "totalDraftTokens": self.num_draft_tokens,
            },
            "firstIter": self.first_iter,
            "lastIter": self.last_iter,
        }


class RequestStage(Enum):
    """Where a request is; the reference's names."""

    QUEUED = "QUEUED"
    CONTEXT_IN_PROGRESS = "CONTEXT_IN_PROGRESS"
    GENERATION_IN_PROGRESS = "GENERATION_IN_PROGRESS"


@dataclass(frozen=True, slots=True)
class RequestStats:
    """A request that has not ended, as it stands after a step.

    `num_taken_blocks` and, of these, `num_new_blocks` are what it has held since it was admitted,
    with those that left the attention window since; `metrics` has what it held before a pause.
    """

    request_id: int
    stage: RequestStage
    num_computed_tokens: int
    num_generated_tokens: int
    is_scheduled: bool
    metrics: RequestMetrics
    num_taken_blocks: int = 0
    num_new_blocks: int = 0
    client_id: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the reference's keys of request stats."""
        metrics = self.metrics
        # Each step that drew gave one token, and the guesses that were right.
        num_steps = self.num_generated_tokens - metrics.num_accepted_draft_tokens
        return {
            "id": self.request_id,
            "clientId": self.client_id,
            "stage": self.stage.value,
            "contextPrefillPosition": self.num_computed_tokens,
            "numGeneratedTokens": self.num_generated_tokens,
            "avgNumDecodedTokensPerIter": self.num_generated_tokens / max(1, num_steps),
            "scheduled": self.is_scheduled,
            "paused": metrics.num_pauses > 0 and self.stage is RequestStage.QUEUED,
            "allocTotalBlocksPerRequest": metrics.num_allocated_blocks + self.num_taken_blocks,
            "allocNewBlocksPerRequest": metrics.num_new_blocks + self.num_new_blocks,
            "reusedBlocksPerRequest": metrics.num_reused_blocks,
            "missedBlocksPerRequest": metrics.num_missed_blocks,
            "kvCacheHitRatePerRequest": metrics.hit_rate,
        }
