"""Keeps the tokens of stop words out of the text of an answer.

In come an answer's tokens as they are drawn; out go those that belong to its text. Tokens that may
yet turn out to begin a stop word are held back. The runtime decides where an answer ends; this
only follows it. Knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.runtime.request import FinishReason


class StopWordHold:
    """Follows one answer. With `is_included` stop words are text like everything else."""

    def __init__(self, words: Sequence[Sequence[int]], is_included: bool) -> None:
        self._words = sorted((list(word) for word in words), key=len, reverse=True)
        self._is_included = is_included
        self._held: list[int] = []
        self.stop_reason: int | None = None

    def push(self, tokens: Sequence[int], reason: FinishReason) -> list[int]:
        """Return the tokens that are text for certain."""
        known = [*self._held, *tokens]
        num_stop = 0
        if reason is FinishReason.STOP_WORDS:
            word = next(word for word in self._words if known[-len(word) :] == word)
            self.stop_reason, num_stop = (word[0] if len(word) == 1 else None), len(word)
        elif reason is FinishReason.NOT_FINISHED:
            num_stop = self._longest_begun(known)
        num_safe = len(known) - num_stop
        self._held = known[num_safe:]
        return list(tokens) if self._is_included else known[:num_safe]

    def _longest_begun(self, tokens: list[int]) -> int:
        """Length of the longest tail that begins a stop word."""
        longest = 0
        for word in self._words:
            for length in range(min(len(word) - 1, len(tokens)), longest, -1):
                if tokens[-length:] == word[:length]:
                    longest = length
                    break
        return longest
