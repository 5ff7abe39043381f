"""What client and host say to one another: msgpack structs with one version for all of them.

A connection begins with a `Hello` from each side. After that a client sends `Ask`s and the host
one `Tell` a step, however many requests are in flight. Errors travel as data with their four
parts, and come out as the class they were. Knows nothing of sockets or engines.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tidemill.base import errors
from tidemill.base.errors import HostError, TidemillError
from tidemill.host.beam_search import BeamSettings
from tidemill.runtime.events import RequestEvent
from tidemill.runtime.iteration_stats import IterationStats
from tidemill.runtime.kvcache.retention import KvCacheRetention
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.loop_stats import LoopStats
from tidemill.runtime.observation import OutputWishes, TokenLogprobs
from tidemill.runtime.statistics import RequestMetrics, RequestStats
from tidemill.runtime.step import EngineLimits

PROTOCOL_VERSION = 3

NAME_TO_ERROR: dict[str, type[TidemillError]] = {
    error.__name__: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, TidemillError)
}


class WireError(msgspec.Struct, array_like=True, frozen=True):
    """An error of the family, in parts; `kind` is its class's name."""

    kind: str
    what: str
    where: str = ""
    expected: str = ""
    got: str = ""
    hint: str = ""

    @classmethod
    def from_exception(cls, error: TidemillError) -> WireError:
        """Take an error apart."""
        kind, parts = type(error).__name__, (error.where, error.expected, error.got, error.hint)
        return cls(kind, error.what, *parts)

    def to_exception(self) -> TidemillError:
        """Put the error together again, as the class it was."""
        error_class = NAME_TO_ERROR.get(self.kind, HostError)
        return error_class(
            self.what, where=self.where, expected=self.expected, got=self.got, hint=self.hint
        )


class GenerateRequest(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One answer that a client wants.

    What is computed is `prompt_tokens`, or else `prompt` tokenised, or else `messages` through
    the chat template; with `prompt_tokens`, `prompt` is only the text that an echo returns.
    `max_tokens` None means as many as fit. Sampling values left None are greedy when all are, and
    neutral otherwise. `end_id` None means the model's own end tokens, -1 none. `bad_words` and
    `bias_words` are texts, `rules` has what is known in tokens. An answer that ends with one of
    `stop_token_words` ends there; its text leaves the word out unless `include_stop_in_output`.
    With `return_perf_metrics` each piece of a stream tells the metrics so far.
    Of `best_of` answers `n` are told. `guide` is a kind of guide and its text; `processor` names a
    logits processor, as module:function or as the host's process registered it. `priority` to
    `speculation` are those of the runtime's `Request`.
    """

    request_id: str
    prompt: str | None = None
    prompt_tokens: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = 32
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    end_id: int | None = None
    min_p: float | None = None
    rules: LogitsRules | None = None
    bad_words: list[str] = []
    bias_words: list[tuple[str, float]] = []
    stop: list[str] = []
    stop_token_words: list[list[int]] = []
    wishes: OutputWishes | None = None
    n: int = 1
    best_of: int | None = None
    beams: BeamSettings | None = None
    guide: tuple[str, str] | None = None
    processor: str | None = None
    include_stop_in_output: bool = False
    exclude_input_in_output: bool = True
    streaming: bool = False
    add_special_tokens: bool = True
    skip_special_tokens: bool = True
    priority: float = 0.5
    allotted_time_ms: float | None = None
    cache_salt: str = ""
    retention: KvCacheRetention | None = None
    speculation: bool = True
    return_perf_metrics: bool = False
    detokenize: bool = True


class Update(msgspec.Struct, array_like=True):
    """News of one request: what is new since the update before.

    Streaming requests get one for each step that gave them something, others one at their end.
    `finish_reason` is end_id, stop_words, length, timed_out or cancelled; None while it goes on.
    With `error` the request has ended, and no finish reason applies. `stop_reason` is the stop
    string that matched, or the stop token. The last update of a computed request holds its
    `metrics`. What was wished for stands in the five from `logprobs` on: new log-probabilities of
    output and prompt (from its second token on), the sum of the output's so far, rows of logits
    as native float32. `index` tells the answers of one request apart, `num_open` counts those
    that go on.
    """

    request_id: str
    token_ids: list[int]
    text: str
    finish_reason: str | None
    num_input_tokens: int
    num_output_tokens: int
    stop_reason: str | int | None = None
    error: WireError | None = None
    metrics: RequestMetrics | None = None
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []
    cumulative_logprob: float | None = None
    context_logits: bytes = b""
    generation_logits: bytes = b""
    index: int = 0
    num_open: int = 0

    @property
    def is_final(self) -> bool:
        """Whether the request has ended: this answer, and all others of it."""
        has_ended = self.finish_reason is not None and self.num_open == 0
        return has_ended or self.error is not None

    @property
    def is_first(self) -> bool:
        """Whether these are the first tokens of an answer that goes on."""
        num_tokens = len(self.token_ids)
        return 0 < num_tokens == self.num_output_tokens and self.finish_reason is None

    @classmethod
    def failed(cls, request_id: str, error: TidemillError) -> Update:
        """Make the last update of a request that failed."""
        return cls(request_id, [], "", None, 0, 0, error=WireError.from_exception(error))


class HostInfo(msgspec.Struct, array_like=True, frozen=True):
    """What a client can know of the engine it uses; `memory_bytes` as in `StatsReport`."""

    engine_dir: str
    pid: int
    limits: EngineLimits
    has_tokenizer: bool
    stats: LoopStats
    memory_bytes: int


class StatsReport(msgspec.Struct, array_like=True, frozen=True):
    """What an exporter of metrics needs: iterations, events and requests, as far as kept.

    `memory_bytes` is what the host's process holds now, shared pages included.
    """

    iterations: list[IterationStats]
    events: list[RequestEvent]
    requests: list[RequestStats]
    memory_bytes: int
    is_static_batching: bool = False

    def iterations_json(self) -> list[dict[str, Any]]:
        """Return each iteration under TensorRT-LLM's JSON keys."""
        return [
            each.to_json(self.memory_bytes, self.is_static_batching) for each in self.iterations
        ]


class StatsSince(msgspec.Struct, array_like=True, frozen=True):
    """Which statistics a client has not seen: those after this iteration and this event."""

    iteration: int = 0
    event: int = 0


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """The first message in each direction. `identity` says who speaks, for error messages."""

    protocol_version: int
    identity: str


class Ask(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """From a client: requests to start, ids to cancel, whether to tell `HostInfo` or statistics."""

    requests: list[GenerateRequest] = []
    cancelled_ids: list[str] = []
    wants_info: bool = False
    wants_stats: StatsSince | None = None


class Tell(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """From the host: what a step gave this client's requests, or what else it asked for.

    After a message with `is_leaving` the host hears nothing more. `error` says why a connection
    is refused; it is the last message on it.
    """

    updates: list[Update] = []
    info: HostInfo | None = None
    is_leaving: bool = False
    stats: StatsReport | None = None
    error: WireError | None = None


class Starting(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """On the pipe from a starting host to its starter: how far it is, or why it failed."""

    stage: str
    is_ready: bool = False
    error: WireError | None = None


Message = Hello | Ask | Tell | Starting
