"""Writes small sentencepiece models as protobufs, field by field, without the package.

In: pieces in order (special ones in angle brackets). Out: a tokenizer.model. Scores fall with the
index, so that earlier pieces are merged first.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path

BPE, UNIGRAM = 2, 1
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def write_sentencepiece(path: Path, pieces: Sequence[str], model_type: int = BPE) -> None:
    """Write a tokenizer.model with the given pieces."""
    data = b"".join(_piece(text, -float(index)) for index, text in enumerate(pieces))
    path.write_bytes(data + _message(2, bytes([3 << 3, model_type])))


def _piece(text: str, score: float) -> bytes:
    body = _message(1, text.encode()) + b"\x15" + struct.pack("<f", score)
    return _message(1, body + bytes([3 << 3, _kind(text)]))


def _kind(text: str) -> int:
    if re.fullmatch("<0x[0-9A-F]{2}>", text):
        return _BYTE
    if text == "<unk>":
        return _UNKNOWN
    return _CONTROL if text in ("<s>", "</s>") else _NORMAL


def _message(number: int, payload: bytes) -> bytes:
    assert len(payload) < 128, "lengths are written as one byte"
    return bytes([number << 3 | 2, len(payload)]) + payload
