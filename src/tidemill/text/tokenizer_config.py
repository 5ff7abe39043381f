"""What stands beside tokenizer.json: special tokens, end ids, the chat template's text.

In: a directory. Out: one TokenizerConfig, read from tokenizer_config.json, special_tokens_map.json,
generation_config.json and chat_template.jinja, as far as they are present. Token names are not yet
resolved to ids; that needs the vocabulary, of which this module knows nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.base.errors import CheckpointError
from tidemill.base.json_text import parse_json

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


@dataclass(frozen=True)
class TokenizerConfig:
    """The settings of one tokenizer; absent ones are None or empty.

    `special_tokens` maps names such as "eos_token" to the token's text; the `generation_*` ids are
    those of generation_config.json. Whether a prompt begins with the BOS token stands in
    tokenizer.json; add_bos_token of the config is for tokenizers that have no such file.
    """

    special_tokens: dict[str, str]
    generation_bos_token_id: int | None
    generation_eos_token_ids: tuple[int, ...]
    generation_pad_token_id: int | None
    chat_template: str | None


def read_tokenizer_config(directory: Path) -> TokenizerConfig:
    """Read the settings of the tokenizer in `directory`.

    Raises: CheckpointError if a file is there but is no JSON object, or an id is no integer.
    """
    config = _read_object(directory / "tokenizer_config.json")
    tokens = _read_object(directory / "special_tokens_map.json") | {
        name: value for name, value in config.items() if value is not None
    }
    generation_path = directory / "generation_config.json"
    generation = _read_object(generation_path)
    return TokenizerConfig(
        special_tokens={
            name: text for name in _SPECIAL_NAMES if (text := _token_text(tokens.get(name)))
        },
        generation_bos_token_id=_first(_ids(generation, "bos_token_id", generation_path)),
        generation_eos_token_ids=_ids(generation, "eos_token_id", generation_path),
        generation_pad_token_id=_first(_ids(generation, "pad_token_id", generation_path)),
        chat_template=_chat_template(directory, config.get("chat_template")),
    )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    if not path.is_file():  # a device would be read without end
        raise _unreadable(path, "not a file")
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(value, dict):
        raise _unreadable(path, type(value).__name__)
    return value


def _unreadable(path: Path, got: str, expected: str = "a JSON object") -> CheckpointError:
    return CheckpointError(
        "a tokenizer file cannot be read",
        where=str(path),
        expected=expected,
        got=got,
        hint="fetch the file again, or remove it if the model does not need it",
    )


def _ids(generation: dict[str, Any], name: str, path: Path) -> tuple[int, ...]:
    value = generation.get(name)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if all(type(token_id) is int and token_id >= 0 for token_id in ids):
        return ids
    raise CheckpointError(
        "a token id cannot be used",
        where=f"{path}, {name}",
        expected="an integer from 0 on, or a list of them",
        got=json.dumps(value),
        hint="mend the file, or remove the entry",
    )


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def _token_text(value: object) -> str | None:
    """Read a token written as plain text or as an AddedToken object."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _chat_template(directory: Path, value: object) -> str | None:
    """Choose the template: a file of its own wins, as in transformers; of a list, "default"."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise _unreadable(path, str(error), "a template in UTF-8") from error
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        value = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    return value if isinstance(value, str) else None
