"""Log-probabilities and logits as the tensors of the classic contract.

In: an answer's updates. Out: cum_log_probs (1), output_log_probs (1, tokens), context_logits
(prompt tokens, vocabulary) and generation_logits (1, tokens, vocabulary), what was asked for alone;
streams tell what is new, and the context once. One beam; the batch dimension is the caller's.
"""

from __future__ import annotations

import numpy as np

from tidemill.frontends.triton.stub_api import Array
from tidemill.host.messages import Update
from tidemill.runtime.observation import OutputWishes


class ObservedTensors:
    """One answer's, held until a response goes out."""

    def __init__(self, wishes: OutputWishes | None) -> None:
        self._wishes = wishes or OutputWishes()
        self._logprobs: list[float] = []
        self._cumulative = 0.0
        self._context, self._generation = b"", b""
        self._num_input = 0

    def add(self, update: Update) -> None:
        """Hold what an update tells."""
        if self._wishes.is_empty:
            return
        self._logprobs += [entries[0][1] for entries in update.logprobs]
        if update.cumulative_logprob is not None:
            self._cumulative = update.cumulative_logprob
        self._context += update.context_logits
        self._generation += update.generation_logits
        self._num_input = update.num_input_tokens

    def take(self, num_tokens: int) -> dict[str, Array]:
        """Return the tensors of a response with so many new tokens."""
        wishes, outputs = self._wishes, {}
        if wishes.num_logprobs is not None:
            outputs["cum_log_probs"] = np.array([self._cumulative], np.float32)
            outputs["output_log_probs"] = np.array([self._logprobs], np.float32)
        if wishes.context_logits and self._context:
            outputs["context_logits"] = rows_of(self._context, self._num_input)
        if wishes.generation_logits:
            outputs["generation_logits"] = rows_of(self._generation, num_tokens)[np.newaxis]
        self._logprobs, self._context, self._generation = [], b"", b""
        return outputs


def rows_of(raw: bytes, num_rows: int) -> Array:
    """Return rows of logits; without rows there are no columns either."""
    logits: Array = np.frombuffer(raw, np.float32)
    return logits.reshape(num_rows, -1 if num_rows else 0)
