"""What a request may ask to see of its steps beside tokens, and what it then gets.

Wishes travel with the request, sights come back with its token updates. Log-probabilities are the
model's own: of the raw logits, before any edit and temperature. Logits are native float32, row
after row. Knows nothing of how they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

# (token, log-probability, rank among all tokens from 1), the token of the sequence first.
TokenLogprobs = tuple[tuple[int, float, int], ...]


@dataclass(frozen=True)
class OutputWishes:
    """What to tell: log-probabilities, with so many of the likeliest tokens; rows of logits."""

    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    context_logits: bool = False
    generation_logits: bool = False

    @property
    def is_of_prompt(self) -> bool:
        return self.num_prompt_logprobs is not None or self.context_logits

    @property
    def is_of_output(self) -> bool:
        return self.num_logprobs is not None or self.generation_logits

    @property
    def is_empty(self) -> bool:
        return not (self.is_of_prompt or self.is_of_output)


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen at one position or more: log-probabilities, rows of logits."""

    logprobs: tuple[TokenLogprobs, ...] = ()
    logits: bytes = b""


@dataclass(frozen=True, slots=True)
class Observation:
    """One request's sights of one step. `error` says how its own guide or processor failed."""

    prompt: Sight | None = None
    output: Sight | None = None
    error: str = ""
