"""Reads a sentencepiece tokenizer.model without the sentencepiece package.

In: the file's bytes (a protobuf). Out: the vocabulary under GGUF's metadata keys, so that one
writer of tokenizer.json serves both. Only byte-pair models: a unigram model is refused.
Source: sentencepiece_model.proto (fields by number below); GGUF uses the same piece types.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tidemill.base.errors import CheckpointError, UnsupportedError

# ModelProto fields, SentencePiece fields, TrainerSpec fields, NormalizerSpec fields.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _UNK_ID, _BOS_ID, _EOS_ID = 3, 40, 41, 42
_ADD_DUMMY_PREFIX = 3
_BPE = 2
_NO_ID = (1 << 64) - 1  # -1 as a varint


def metadata_from_sentencepiece(path: Path) -> dict[str, Any]:
    """Return a tokenizer.model's content as GGUF tokenizer metadata.

    Raises: CheckpointError when the file is no such protobuf, UnsupportedError for unigram models.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [dict(_fields(value)) for number, value in fields if number == _PIECES]
        trainer = _section(fields, _TRAINER)
        normalizer = _section(fields, _NORMALIZER)
        tokens = [piece[_TEXT].decode("utf-8") for piece in pieces]
    except (ValueError, KeyError, IndexError, TypeError, struct.error, AttributeError) as error:
        raise CheckpointError(
            "not a sentencepiece model",
            where=str(path),
            expected="a tokenizer.model protobuf",
            got=f"{type(error).__name__}: {error}",
            hint="fetch tokenizer.model again, or put a tokenizer.json beside it",
        ) from error
    if trainer.get(_MODEL_TYPE, 1) != _BPE:
        raise UnsupportedError(
            "sentencepiece model type is not supported",
            where=str(path),
            expected="a byte-pair model (type 2)",
            got=f"type {trainer.get(_MODEL_TYPE, 1)}",
            hint="write a tokenizer.json with transformers: "
            "AutoTokenizer.from_pretrained(dir).save_pretrained(dir)",
        )
    ids = {
        "bos": trainer.get(_BOS_ID, 1),
        "eos": trainer.get(_EOS_ID, 2),
        "unknown": trainer.get(_UNK_ID, 0),
    }
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [_float(piece.get(_SCORE, 0)) for piece in pieces],
        "tokenizer.ggml.token_type": [piece.get(_TYPE, 1) for piece in pieces],
        "tokenizer.ggml.add_space_prefix": bool(normalizer.get(_ADD_DUMMY_PREFIX, 1)),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        **{f"tokenizer.ggml.{k}_token_id": v for k, v in ids.items() if v != _NO_ID},
    }


def _section(fields: list[tuple[int, Any]], number: int) -> dict[int, Any]:
    return dict(_fields(next((value for key, value in fields if key == number), b"")))


def _float(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value): bytes for messages and strings, raw integers otherwise."""
    offset = 0
    while offset < len(data):
        tag, offset = _varint(data, offset)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, offset = _varint(data, offset)
            yield number, value
            continue
        if wire == 2:
            size, offset = _varint(data, offset)
        else:
            size = {1: 8, 5: 4}[wire]
        raw = data[offset : offset + size]
        if len(raw) < size:
            raise ValueError(f"field {number} is cut short")
        offset += size
        yield number, raw if wire == 2 else int.from_bytes(raw, "little")


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, offset
