"""An admitted request: the blocks it holds, how far it has come, what a drawn token means to it.

The scheduler alone changes it. Knows nothing of other requests.
"""

from __future__ import annotations

from dataclasses import replace

from tidemill.runtime.kvcache.block_pool import BlockTable
from tidemill.runtime.observation import Observation
from tidemill.runtime.request import FinishReason, Request, TokenUpdate
from tidemill.runtime.token_history import TokenHistory


class RequestState:
    """An admitted request: its blocks and how far it has come.

    Units: `num_computed` counts positions whose keys and values are in the cache, or will be when
    the step in flight is committed.
    """

    __slots__ = (
        "_observations",
        "history",
        "is_cancelled",
        "num_computed",
        "output_tokens",
        "request",
        "table",
    )

    def __init__(self, request: Request, table: BlockTable) -> None:
        self.request = request
        self.table = table
        self.num_computed = 0
        self.output_tokens: list[int] = []
        self.is_cancelled = False
        self._observations: list[Observation] = []
        needs_history = request.needs_history
        self.history = TokenHistory(request, self.output_tokens) if needs_history else None

    @property
    def num_context_left(self) -> int:
        """Prompt tokens that are not computed yet."""
        return len(self.request.prompt_tokens) - self.num_computed

    @property
    def num_known(self) -> int:
        """Tokens that are known: the prompt and what was drawn."""
        return len(self.request.prompt_tokens) + len(self.output_tokens)

    def advance(self, token: int) -> TokenUpdate:
        """Take in a drawn token; tell what it means to the caller."""
        request = self.request
        if any(each.error for each in self._observations):
            seen = self._take_observations()
            return TokenUpdate(request.request_id, (), FinishReason.CANCELLED, seen)
        if token in request.end_ids:
            seen = tuple(replace(each, output=None) for each in self._take_observations())
            return TokenUpdate(request.request_id, (), FinishReason.END_ID, seen)
        self.output_tokens.append(token)
        reason = FinishReason.NOT_FINISHED
        if request.stop_words and self._ends_with_stop_word():
            reason = FinishReason.STOP_WORDS
        elif len(self.output_tokens) == request.max_new_tokens:
            reason = FinishReason.LENGTH
        return TokenUpdate(request.request_id, (token,), reason, self._take_observations())

    def observe(self, observation: Observation) -> None:
        """Keep what a step showed until its next token is told."""
        self._observations.append(observation)

    def _take_observations(self) -> tuple[Observation, ...]:
        if not self._observations:
            return ()
        taken, self._observations = tuple(self._observations), []
        return taken

    def _ends_with_stop_word(self) -> bool:
        output = self.output_tokens
        return any(output[-len(word) :] == list(word) for word in self.request.stop_words)
