"""Guesses the next tokens by looking the latest ones up in the request's own text.

In come a request's known tokens; out come those that followed the same n-gram the last time. A
guess costs room in a step, never correctness: the step verifies it. Knows nothing of steps.

Source: prompt lookup decoding (A. Saxena, 2023); TensorRT-LLM's NGram speculation.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.runtime.request_state import RequestState

MIN_NGRAM_SIZE = 2


class NgramIndex:
    """Where each n-gram of one text was last followed by something. It grows with the text."""

    def __init__(self, max_size: int) -> None:
        self._sizes = range(max_size, min(max_size, MIN_NGRAM_SIZE) - 1, -1)
        self._next_of: dict[tuple[int, ...], int] = {}
        self._num_indexed = 1

    def follow(self, tokens: Sequence[int]) -> None:
        """Take in the tokens that came since the last time."""
        next_of = self._next_of
        for position in range(self._num_indexed, len(tokens)):
            for size in self._sizes:
                if size <= position:
                    next_of[tuple(tokens[position - size : position])] = position
        self._num_indexed = max(self._num_indexed, len(tokens))

    def guess(self, tokens: Sequence[int], num_tokens: int) -> Sequence[int]:
        """Return at most so many tokens that followed the longest known end of the text."""
        for size in self._sizes:
            position = self._next_of.get(tuple(tokens[-size:]))
            if position is not None:
                return tokens[position : position + num_tokens]
        return ()


class NgramDrafter:
    """Guesses for any request; the index lives with the request's state."""

    def __init__(self, max_matching_ngram_size: int) -> None:
        self._max_size = max_matching_ngram_size

    def __call__(self, state: RequestState, num_tokens: int) -> Sequence[int]:
        if not isinstance(state.drafting, NgramIndex):
            state.drafting = NgramIndex(self._max_size)
        state.drafting.follow(state.tokens)
        return state.drafting.guess(state.tokens, num_tokens)
