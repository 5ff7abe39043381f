"""Incremental detokenizer: token ids come in as they are generated, text goes out at once.

Law: the pushes joined, with finish() at the end, equal Tokenizer.decode_continuation of the same
ids. Text is held back only while its last character is incomplete (at most three bytes), and what
was sent is never rewritten. A character is a Unicode code point: an emoji joined from several of
them may arrive in parts. Knows nothing of stop strings or requests.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from tidemill.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turn a growing list of token ids into text, each token once."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        # Malformed bytes become U+FFFD, one per maximal ill-formed part, as in Rust and Unicode.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """Take the next tokens and return the new text that is safe to send."""
        return self._utf8.decode(
            self._tokenizer.token_ids_to_bytes(token_ids, self._skip_special_tokens)
        )

    @property
    def holds_back(self) -> bool:
        """Whether the last token ended inside of a character."""
        return bool(self._utf8.getstate()[0])

    def finish(self) -> str:
        """Return what was held back; an incomplete character becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)
