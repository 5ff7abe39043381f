"""How the runtime serves: policies and bounds, chosen by whoever opens an engine.

Plain frozen settings with TensorRT-LLM's names and defaults where it has them; the engine's own
shapes are `EngineLimits`. Knows nothing of command lines or messages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from tidemill.base.errors import ConfigError
from tidemill.runtime.kvcache.host_tier import DEFAULT_OFFLOAD_MIN_PRIORITY


class CapacityPolicy(Enum):
    """Which requests may be active together; see docs/RUNTIME.md."""

    MAX_UTILIZATION = "max_utilization"
    GUARANTEED_NO_EVICT = "guaranteed_no_evict"
    STATIC_BATCH = "static_batch"


class ChunkingPolicy(Enum):
    """How contexts share a step that is too small for all of them; OFF never cuts a prompt."""

    OFF = "off"
    FIRST_COME_FIRST_SERVED = "first_come_first_served"
    EQUAL_PROGRESS = "equal_progress"


@dataclass(frozen=True)
class RuntimeConfig:
    """How requests are scheduled, cached and counted.

    Units: `max_queue_size` counts requests (0: no limit), `max_draft_len` tokens proposed a step by
    looking the latest `max_matching_ngram_size` tokens up in the request itself (0: never).
    `max_step_ms` is how long a step may keep running requests from their next token because
    prompts enter with it (0: as long as `max_num_tokens` take). Evicted blocks go to the host tier,
    where there is one, from retention priority `secondary_offload_min_priority` on.
    """

    policy: CapacityPolicy = CapacityPolicy.GUARANTEED_NO_EVICT
    chunking: ChunkingPolicy = ChunkingPolicy.FIRST_COME_FIRST_SERVED
    max_queue_size: int = 0
    enable_block_reuse: bool = True
    enable_partial_reuse: bool = True
    max_draft_len: int = 0
    max_matching_ngram_size: int = 3
    secondary_offload_min_priority: int = DEFAULT_OFFLOAD_MIN_PRIORITY
    iter_stats_max_iterations: int = 1000
    event_buffer_max_size: int = 0
    max_step_ms: float = 100.0

    def __post_init__(self) -> None:
        least = (
            ("max_queue_size", self.max_queue_size, 0),
            ("max_draft_len", self.max_draft_len, 0),
            ("max_matching_ngram_size", self.max_matching_ngram_size, 1),
            ("secondary_offload_min_priority", self.secondary_offload_min_priority, 0),
            ("iter_stats_max_iterations", self.iter_stats_max_iterations, 0),
            ("event_buffer_max_size", self.event_buffer_max_size, 0),
            ("max_step_ms", self.max_step_ms, 0),
        )
        faults = [
            f"{name} must be at least {bound}, got {value}"
            for name, value, bound in least
            if not bound <= value < math.inf
        ]
        if faults:
            raise ConfigError(
                "the runtime cannot be configured so",
                where="runtime config",
                expected="every number finite and at least its bound",
                got="; ".join(faults),
                hint="see docs/RUNTIME.md",
            )


DEFAULT_CONFIG = RuntimeConfig()
