"""Collects what one answer showed of its steps, between two updates for the client.

In come the runtime's observations, out go the fields of an `Update`. Knows nothing of text.
"""

from __future__ import annotations

from tidemill.host.messages import Update
from tidemill.runtime.observation import Observation, TokenLogprobs


class ObservedOutput:
    """One answer's log-probabilities and logits that the client has not got yet."""

    def __init__(self) -> None:
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._context_logits: list[bytes] = []
        self._generation_logits: list[bytes] = []
        self.cumulative_logprob: float | None = None

    def add(self, observation: Observation) -> None:
        """Take one step's sights."""
        if observation.prompt is not None:
            self._prompt_logprobs.extend(observation.prompt.logprobs)
            self._context_logits.append(observation.prompt.logits)
        if observation.output is not None:
            self._logprobs.extend(observation.output.logprobs)
            self._generation_logits.append(observation.output.logits)
            for entries in observation.output.logprobs:
                self.cumulative_logprob = (self.cumulative_logprob or 0.0) + entries[0][1]

    def drain_into(self, update: Update) -> None:
        """Move what is new into an update."""
        update.logprobs, self._logprobs = self._logprobs, []
        update.prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, []
        update.cumulative_logprob = self.cumulative_logprob
        update.context_logits = b"".join(self._context_logits)
        update.generation_logits = b"".join(self._generation_logits)
        self._context_logits.clear()
        self._generation_logits.clear()
