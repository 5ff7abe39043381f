"""Stop strings: find the end of an answer in text that arrives in pieces.

In: pieces of decoded text, split anywhere. Out: the text that can be sent, and the stop string
that ended it. The answer does not depend on how the text was split: the match that ends first
wins, and of those that end together the longest. Knows nothing of tokens or requests.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.base.errors import InvalidRequestError


class StopStringMatcher:
    """Watch one answer for the first of several stop strings."""

    def __init__(self, stops: Sequence[str], include_in_output: bool = False) -> None:
        """Prepare to watch for `stops`.

        Raises: InvalidRequestError if a stop string is empty or no string.
        """
        faulty = [stop for stop in stops if not isinstance(stop, str) or not stop]
        if isinstance(stops, str) or faulty:
            raise InvalidRequestError(
                "a stop string cannot be used",
                where="stop strings",
                expected="a list of strings with at least one character each",
                got=repr(stops) if isinstance(stops, str) else ", ".join(map(repr, faulty)),
                hint="leave empty stop strings out",
            )
        self._stops = tuple(dict.fromkeys(stops))
        self._include_in_output = include_in_output
        self._max_held_chars = max((len(stop) for stop in self._stops), default=1) - 1
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; return what can be sent now and the stop string found, if any.

        Text after the stop string is dropped, and so are later pushes.
        """
        if self._matched is not None:
            return "", self._matched
        text = self._held + text
        match = self._first_match(text)
        if match is not None:
            end, start = match
            self._held, self._matched = "", text[start:end]
            return text[: end if self._include_in_output else start], self._matched
        held_from = self._held_from(text)
        self._held = text[held_from:]
        return text[:held_from], None

    def finish(self) -> str:
        """Return the text still held back: it was no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, int] | None:
        """Find the match that ends first, as (end, start); the longest of those starts first."""
        places = [(text.find(stop), len(stop)) for stop in self._stops]
        return min(((at + size, at) for at, size in places if at >= 0), default=None)

    def _held_from(self, text: str) -> int:
        """Find where the longest tail begins that may still grow into a stop string."""
        for start in range(max(0, len(text) - self._max_held_chars), len(text)):
            tail = text[start:]
            if any(stop.startswith(tail) for stop in self._stops):
                return start
        return len(text)
