"""A request's life in tokens: what was asked, why it ended.

The runtime knows tokens only; text, stop strings and transport live above it. A new type at each
door: `Request` (arrived), `RequestState` (queued, then active), `PlanEntry` (planned),
`TokenUpdate` (committed).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tidemill.base.record import record
from tidemill.runtime.choice_hooks import LogitsProcessor, TokenGuide
from tidemill.runtime.kvcache.retention import KvCacheRetention
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.observation import Observation, OutputWishes
from tidemill.runtime.statistics import RequestMetrics


class FinishReason(Enum):
    """Why a request ended; the names and numbers of TensorRT-LLM's executor."""

    NOT_FINISHED = 0
    END_ID = 1
    STOP_WORDS = 2
    LENGTH = 3
    TIMED_OUT = 4
    CANCELLED = 5


# Those of every step, by names that are found at once.
NOT_FINISHED, END_ID = FinishReason.NOT_FINISHED, FinishReason.END_ID


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen.

    `temperature` 0, `top_k` 1 or everything unset means greedy. `top_k` 0 means all tokens,
    `top_p` 1.0 means all mass. `seed` keys the counter-based random numbers: the same seed and
    position draw the same number, whatever else is in flight. `min_p` keeps tokens at least that
    likely, relative to the most likely one. `rules` None means no edits of the logits.
    """

    temperature: float = 1.0
    top_k: int = 1
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    rules: LogitsRules | None = None

    @property
    def is_greedy(self) -> bool:
        return self.top_k == 1 or self.temperature == 0.0 or self.top_p <= 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """What one caller asked for.

    Units: `max_new_tokens` and prompt lengths count tokens. `end_ids` are tokens that end the
    output and are not part of it; empty means none. `stop_words` are token sequences that end the
    output and stay in it. The last `num_prior_output` tokens of the prompt are output of earlier
    rounds. `request_id` is unique within the loop. Requests of higher `priority` (0 to 1) are
    served first. After `allotted_time_ms` the request ends as it stands. Cached blocks are shared
    within one `lora_id` and `cache_salt` only. `client_id` is what events and statistics call it.
    """

    request_id: int
    prompt_tokens: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParams = SamplingParams()
    end_ids: tuple[int, ...] = ()
    priority: float = 0.5
    allotted_time_ms: float | None = None
    lora_id: int | None = None
    cache_salt: str = ""
    retention: KvCacheRetention | None = None
    is_speculative: bool = True
    stop_words: tuple[tuple[int, ...], ...] = ()
    wishes: OutputWishes | None = None
    guide: TokenGuide | None = None
    processor: LogitsProcessor | None = None
    num_prior_output: int = 0
    client_id: str = ""

    @property
    def needs_history(self) -> bool:
        """Whether choosing or showing a token takes more than the logits of the step."""
        extras = (self.sampling.rules, self.wishes, self.guide, self.processor)
        return any(extra is not None for extra in extras)

    @property
    def reads_prompt(self) -> bool:
        """Whether every position of the prompt must be computed, cached or not."""
        return self.wishes is not None and self.wishes.is_of_prompt


@record
class TokenUpdate:
    """What one step gave one request: new tokens (end token excluded) and whether it ended.

    `metrics` is the request's live record, complete in its last update. `observations` holds what
    it asked to see, of the steps since the update before.
    """

    request_id: int
    new_tokens: tuple[int, ...]
    finish_reason: FinishReason
    metrics: RequestMetrics | None = None
    observations: tuple[Observation, ...] = ()
