"""A request in the runtime's hands: its tokens, the blocks it holds, how far it has come.

The scheduler and its parts alone change it. Knows nothing of other requests.
"""

from __future__ import annotations

from dataclasses import replace

from tidemill.runtime.kvcache.block_keys import extend_keys, root_key
from tidemill.runtime.kvcache.block_table import BlockTable
from tidemill.runtime.observation import Observation
from tidemill.runtime.request import END_ID, NOT_FINISHED, FinishReason, Request, TokenUpdate
from tidemill.runtime.statistics import RequestMetrics
from tidemill.runtime.token_history import TokenHistory

NO_TABLE = BlockTable()


class RequestState:
    """A request that has not ended: queued (or paused) with `NO_TABLE`, else active.

    `order` is its place in service: lower goes first. Units: `num_computed` counts positions whose
    keys and values are in the cache, or will be when the step in flight is committed. `drafting`
    is what the drafter remembers of it.
    """

    __slots__ = (
        "drafting",
        "history",
        "is_cancelled",
        "keys",
        "metrics",
        "num_computed",
        "num_prompt",
        "observations",
        "order",
        "request",
        "table",
        "tokens",
    )

    def __init__(self, request: Request, number: int, now: float) -> None:
        self.request = request
        self.order = (-request.priority, number)
        self.tokens = list(request.prompt_tokens)
        self.num_prompt = len(self.tokens)
        self.keys: list[bytes] = []
        self.table = NO_TABLE
        self.num_computed = 0
        self.is_cancelled = False
        self.metrics = RequestMetrics(arrival_time=now)
        self.observations: list[Observation] = []
        self.history = TokenHistory(request, self.tokens) if request.needs_history else None
        self.drafting: object = None

    @property
    def num_left(self) -> int:
        """Known tokens that are not computed yet."""
        return len(self.tokens) - self.num_computed

    @property
    def num_output(self) -> int:
        """Tokens that were drawn and kept."""
        return len(self.tokens) - self.num_prompt

    @property
    def max_tokens(self) -> int:
        """Positions that the request takes at most."""
        return self.num_prompt + self.request.max_new_tokens

    def name_blocks(self, unit: int) -> None:
        """Compute the keys of all full blocks of known tokens."""
        if not self.keys:
            self.keys.append(root_key(self.request.lora_id, self.request.cache_salt))
        extend_keys(self.keys, self.tokens, unit)

    def accept(self, drawn: int) -> FinishReason:
        """Take in a drawn token and say what it means; an end token is not kept."""
        request, tokens = self.request, self.tokens
        if drawn in request.end_ids:
            return END_ID
        tokens.append(drawn)
        if request.stop_words and self._ends_with_stop_word():
            return FinishReason.STOP_WORDS
        if len(tokens) == self.num_prompt + request.max_new_tokens:
            return FinishReason.LENGTH
        return NOT_FINISHED

    def tell(self, reason: FinishReason, new_tokens: tuple[int, ...] = ()) -> TokenUpdate:
        """Make the update that tells new tokens, what was seen, and perhaps the end."""
        if not self.observations:
            return TokenUpdate(self.request.request_id, new_tokens, reason, self.metrics)
        seen, self.observations = tuple(self.observations), []
        if reason is END_ID:
            seen = tuple(replace(each, output=None) for each in seen)
        return TokenUpdate(self.request.request_id, new_tokens, reason, self.metrics, seen)

    @property
    def may_speculate(self) -> bool:
        """Whether guesses may be computed: not where a choice depends on the one before."""
        return self.request.is_speculative and self.history is None

    @property
    def has_failed(self) -> bool:
        """Whether the request's own guide or logits processor failed in the step."""
        return any(each.error for each in self.observations)

    def observe(self, observation: Observation) -> None:
        """Keep what a step showed until its next token is told."""
        self.observations.append(observation)

    def _ends_with_stop_word(self) -> bool:
        output = self.tokens[self.num_prompt :]
        return any(output[-len(word) :] == list(word) for word in self.request.stop_words)
