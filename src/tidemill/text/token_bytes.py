"""The bytes that one token adds to a text that has already begun.

In: a loaded tokenizers.Tokenizer and a token id. Out: bytes, found once per token and remembered.
Every decoder used by language models only joins its tokens' bytes, once the first token is past
(decoders that strip a text's first space look at nothing else). So a generated text is the
concatenation of these bytes, read as UTF-8: each token costs O(1), and nothing is ever rewritten.
Knows nothing of streams, requests or files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tidemill.base.errors import UnsupportedError

if TYPE_CHECKING:
    import tokenizers

# CTC and BPEDecoder look at a token's neighbours, so their text is not a concatenation.
_JOINING_DECODERS = {"ByteFallback", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


class TokenBytes:
    """Token id to the bytes it stands for inside a text."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(tokenizer.decoder)
        self._is_byte_level = "ByteLevel" in kinds
        self._has_byte_tokens = "ByteFallback" in kinds
        known = {"ByteLevel", "Fuse"} if self._is_byte_level else _JOINING_DECODERS
        if not kinds <= known:
            raise UnsupportedError(
                "this tokenizer's decoder cannot be streamed",
                where="tokenizer.json, decoder",
                expected="ByteLevel, or any of " + ", ".join(sorted(_JOINING_DECODERS)),
                got=" + ".join(sorted(kinds)),
                hint="export the model's tokenizer with a byte-level or Metaspace decoder",
            )
        self._id_to_bytes: dict[int, bytes] = {}
        self._anchor: tuple[int, int] | None = None

    def __getitem__(self, token_id: int) -> bytes:
        found = self._id_to_bytes.get(token_id)
        if found is None:
            found = self._id_to_bytes[token_id] = self._find(token_id)
        return found

    def _find(self, token_id: int) -> bytes:
        # A model's vocabulary may be padded past the tokenizer's: such ids have no text.
        token = self._tokenizer.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if self._is_byte_level:
            return _byte_level_bytes(token)
        if self._has_byte_tokens and (match := _BYTE_TOKEN.match(token)):
            return bytes.fromhex(match.group(1))
        if self._anchor is None:
            self._anchor = self._find_anchor()
        anchor_id, anchor_length = self._anchor
        text = self._tokenizer.decode([anchor_id, token_id], skip_special_tokens=False)
        return text[anchor_length:].encode()

    def _find_anchor(self) -> tuple[int, int]:
        """Find a token to stand before another one, and the length of its own text."""
        for token_id in range(self._tokenizer.get_vocab_size()):
            text = self._tokenizer.decode([token_id], skip_special_tokens=False)
            is_plain = text.isascii() and text.isalnum()
            twice = self._tokenizer.decode([token_id, token_id], skip_special_tokens=False)
            if is_plain and len(twice) > len(text) and twice.startswith(text):
                return token_id, len(text)
        raise UnsupportedError(
            "this tokenizer's vocabulary cannot be streamed",
            where="tokenizer.json, vocabulary",
            expected="at least one token of ASCII letters or digits",
            got="none",
            hint="check that tokenizer.json belongs to a text model",
        )


def _decoder_kinds(decoder: Any) -> set[str]:
    """List the kinds of a decoder's stages; a decoder's pickle is its JSON text."""
    if decoder is None:
        return set()
    return set(_walk_kinds([json.loads(decoder.__getstate__())]))


def _walk_kinds(stages: Iterable[dict[str, Any]]) -> Iterable[str]:
    for stage in stages:
        if stage["type"] == "Sequence":
            yield from _walk_kinds(stage["decoders"])
        else:
            yield stage["type"]


def _byte_level_alphabet() -> dict[str, int]:
    """Map GPT-2's printable stand-ins to bytes: printable Latin-1 is itself, the rest from 256 on.

    Source: GPT-2's encoder.py, bytes_to_unicode.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return alphabet


_CHAR_TO_BYTE = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_CHAR_TO_BYTE[char] for char in token])
    except KeyError:
        # An added token is written as plain text; one foreign character tells the two apart.
        return token.encode()
