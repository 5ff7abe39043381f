"""How the runtime serves: policies and bounds, chosen by whoever opens an engine.

Plain frozen settings with TensorRT-LLM's names and defaults where it has them; the engine's own
shapes are `EngineLimits`. Knows nothing of command lines or messages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any

from tidemill.base.errors import ConfigError
from tidemill.runtime.kvcache.host_tier import DEFAULT_OFFLOAD_MIN_PRIORITY
from tidemill.runtime.kvcache.retention import MAX_PRIORITY, MIN_PRIORITY


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
        """Take policies by name too, as text and users of the reference write them."""
        faults = [
            *number_faults("max_queue_size", self.max_queue_size, 0),
            *number_faults("max_draft_len", self.max_draft_len, 0),
            *number_faults("max_matching_ngram_size", self.max_matching_ngram_size, 1),
            *number_faults(
                "secondary_offload_min_priority",
                self.secondary_offload_min_priority,
                MIN_PRIORITY,
                MAX_PRIORITY,
            ),
            *number_faults("iter_stats_max_iterations", self.iter_stats_max_iterations, 0),
            *number_faults("event_buffer_max_size", self.event_buffer_max_size, 0),
            *number_faults("max_step_ms", self.max_step_ms, 0, kind=Real),
        ]
        for name, policies, value in (
            ("policy", CapacityPolicy, self.policy),
            ("chunking", ChunkingPolicy, self.chunking),
        ):
            word_to_policy = {policy.value: policy for policy in policies}
            word = value.value if isinstance(value, policies) else str(value).lower()
            chosen = word_to_policy.get(word)
            object.__setattr__(self, name, chosen)
            if chosen is None:
                faults.append(f"{name} must be one of {', '.join(word_to_policy)}, got {value!r}")
        if faults:
            raise ConfigError(
                "the runtime cannot be configured so",
                where="runtime config",
                expected="policies by name, and every number finite and within its bounds",
                got="; ".join(faults),
                hint="see docs/RUNTIME.md",
            )


def number_faults(
    name: str, value: Any, least: float, most: float = math.inf, kind: type = Integral
) -> list[str]:
    """List what is wrong with a setting that is a number of some kind, within bounds."""
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if is_number and least <= value <= most and value < math.inf:
        return []
    bounds = f"at least {least}" + ("" if most == math.inf else f" and at most {most}")
    whole = "a whole number, " if kind is Integral and not is_number else ""
    return [f"{name} must be {whole}{bounds}, got {value}"]


DEFAULT_CONFIG = RuntimeConfig()
