"""The files beside the weights: tokenizer, generation settings, chat template, as bytes by name.

In: a Hugging Face directory, or the metadata of a GGUF file. Out: what a checkpoint carries along.
Where a directory has only a sentencepiece tokenizer.model, tokenizer.json is rebuilt from it.
Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidemill.base.errors import CheckpointError, UnsupportedError
from tidemill.checkpoint.file_bytes import FileBytes
from tidemill.checkpoint.json_file import read_json_object
from tidemill.checkpoint.sentencepiece_model import metadata_from_sentencepiece
from tidemill.checkpoint.writer import TOKENIZER_FILES
from tidemill.text.gguf_tokenizer import tokenizer_files_from_gguf

# GGUF's token types.
_CONTROL, _USER_DEFINED = 3, 4


def files_from_hf(directory: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of a Hugging Face directory, and notes on what is missing or rebuilt.

    Raises: UnsupportedError when only a tokenizer.model is there that cannot be rebuilt exactly.
    """
    paths = [directory / name for name in TOKENIZER_FILES]
    files = {path.name: FileBytes(path).read_all() for path in paths if path.is_file()}
    if "tokenizer.json" in files:
        return files, []
    sentencepiece = directory / "tokenizer.model"
    if not sentencepiece.is_file():
        return files, ["no tokenizer found: text needs one, token ids work"]
    metadata = metadata_from_sentencepiece(sentencepiece)
    if "tokenizer_config.json" in files:
        _apply_settings(metadata, read_json_object(directory / "tokenizer_config.json"), directory)
    note = "tokenizer.json was rebuilt from tokenizer.model"
    return {**files_from_gguf(metadata), **files}, [note]


def files_from_gguf(metadata: Mapping[str, object]) -> dict[str, bytes]:
    """Return the files rebuilt from GGUF metadata."""
    return {name: text.encode() for name, text in tokenizer_files_from_gguf(metadata).items()}


def _apply_settings(metadata: dict[str, Any], settings: Mapping[str, Any], directory: Path) -> None:
    """Add what tokenizer_config.json says beyond the sentencepiece model."""
    for key in ("add_bos_token", "add_eos_token"):
        if isinstance(settings.get(key), bool):
            metadata[f"tokenizer.ggml.{key}"] = settings[key]
    tokens = metadata["tokenizer.ggml.tokens"]
    for token_id, entry in _added_tokens(settings, directory):
        if token_id < len(tokens):
            continue
        if token_id > len(tokens):
            raise UnsupportedError(
                "added tokens leave a gap in the vocabulary",
                where=str(directory / "tokenizer_config.json"),
                expected=f"the next added token at id {len(tokens)}",
                got=f"{entry.get('content')!r} at id {token_id}",
                hint="write a tokenizer.json with transformers: "
                "AutoTokenizer.from_pretrained(dir).save_pretrained(dir)",
            )
        tokens.append(entry["content"])
        metadata["tokenizer.ggml.scores"].append(0.0)
        kind = _CONTROL if entry.get("special") else _USER_DEFINED
        metadata["tokenizer.ggml.token_type"].append(kind)


def _added_tokens(settings: Mapping[str, Any], directory: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read added_tokens_decoder, by id."""
    added = settings.get("added_tokens_decoder") or {}
    is_fine = isinstance(added, dict) and all(
        key.isdecimal() and isinstance(value, dict) and isinstance(value.get("content"), str)
        for key, value in added.items()
    )
    if not is_fine:
        raise CheckpointError(
            "added tokens cannot be read",
            where=str(directory / "tokenizer_config.json"),
            expected="added_tokens_decoder: an object of token id to an object with content",
            got=repr(added)[:200],
            hint="fetch the file again, or put a tokenizer.json beside it",
        )
    return sorted(((int(key), value) for key, value in added.items()), key=lambda pair: pair[0])
