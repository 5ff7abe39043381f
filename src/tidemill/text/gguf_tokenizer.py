"""Rebuild a model's tokenizer files from the metadata of its GGUF file.

In: metadata as plain Python values. Out: the text of tokenizer.json, tokenizer_config.json and
generation_config.json. Two families: "gpt2" (byte-level BPE with its merges) and "llama"
(SentencePiece BPE, whose merges follow from the scores, with byte fallback).
Knows nothing of the GGUF file itself, nor of weights.
Source: GGUF specification, tokenizer keys; transformers LlamaConverter; llama.cpp llama-vocab.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.base.errors import CheckpointError, UnsupportedError
from tidemill.text.gguf_pre_tokenizers import find_pre_tokenizer
from tidemill.text.spm_merges import merges_from_scores

_PREFIX = "tokenizer.ggml."
_KEY_TO_TYPE: dict[str, type] = {
    "model": str, "pre": str, "tokens": list, "token_type": list, "merges": list, "scores": list,
    "bos_token_id": int, "eos_token_id": int, "eot_token_id": int, "eom_token_id": int,
    "unknown_token_id": int, "padding_token_id": int, "add_bos_token": bool,
    "add_eos_token": bool, "add_space_prefix": bool,
}  # fmt: skip
_KEY_TO_ITEM_TYPE: dict[str, type] = {
    "tokens": str, "token_type": int, "merges": str, "scores": float,
}  # fmt: skip
_FAMILY_TO_KEYS = {"gpt2": ("tokens", "merges"), "llama": ("tokens", "scores")}

# GGUF token types; the others (unused, byte) need nothing special here.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_BYTE = 6
_SPACE = "\u2581"


@dataclass(frozen=True)
class _Vocabulary:
    """The checked metadata: `settings` by key without prefix, types one per token."""

    settings: dict[str, Any]
    tokens: list[str]
    types: list[int]

    def token(self, key: str) -> str | None:
        token_id = self.settings.get(key)
        return None if token_id is None else self.tokens[token_id]


def tokenizer_files_from_gguf(metadata: Mapping[str, object]) -> dict[str, str]:
    """Rebuild tokenizer files; file name to text.

    Raises: CheckpointError listing every key that is missing or malformed; UnsupportedError if
    the tokenizer's family or pre-tokenizer is not one of ours.
    """
    vocabulary = _read_vocabulary(metadata)
    if vocabulary.settings["model"] == "gpt2":
        tokenizer, adds_bos = _byte_level_tokenizer(vocabulary)
    else:
        tokenizer, adds_bos = _sentencepiece_tokenizer(vocabulary), True
    adds_bos = vocabulary.settings.get("add_bos_token", adds_bos)
    adds_eos = vocabulary.settings.get("add_eos_token", False)
    tokenizer["post_processor"] = _post_processor(vocabulary, adds_bos, adds_eos)
    config = {
        **_special_tokens(vocabulary),
        "add_bos_token": adds_bos,
        "add_eos_token": adds_eos,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
        "generation_config.json": json.dumps(_generation_config(vocabulary), indent=2),
    }


def _read_vocabulary(metadata: Mapping[str, object]) -> _Vocabulary:
    settings = {key: metadata[_PREFIX + key] for key in _KEY_TO_TYPE if _PREFIX + key in metadata}
    family = settings.get("model")
    if isinstance(family, str) and family not in _FAMILY_TO_KEYS:
        raise UnsupportedError(
            "this GGUF file's tokenizer is of a family that is not known",
            where="GGUF metadata, tokenizer.ggml.model",
            expected="one of " + ", ".join(sorted(_FAMILY_TO_KEYS)),
            got=family,
            hint="convert from the model's Hugging Face directory, which has its tokenizer.json",
        )
    faults = _faults(settings, ("model", *_FAMILY_TO_KEYS.get(str(family), ())))
    if faults:
        raise CheckpointError(
            "the GGUF file's tokenizer metadata cannot be used",
            where="GGUF metadata, tokenizer.ggml.*",
            expected="the keys of the GGUF specification for this tokenizer",
            got="; ".join(faults),
            hint="fetch the file again, or convert from the model's Hugging Face directory",
        )
    tokens: Any = settings["tokens"]
    types: Any = settings.get("token_type", [_NORMAL] * len(tokens))
    return _Vocabulary(settings, tokens, types)


def _faults(settings: Mapping[str, Any], required: tuple[str, ...]) -> list[str]:
    faults = [f"{key} is missing" for key in required if key not in settings]
    faults += [
        f"{key} is of type {type(value).__name__}, not {_KEY_TO_TYPE[key].__name__}"
        for key, value in settings.items()
        if type(value) is not _KEY_TO_TYPE[key]
    ]
    faults += [
        f"{key} holds more than {kind.__name__}"
        for key, kind in _KEY_TO_ITEM_TYPE.items()
        if isinstance(settings.get(key), list) and not set(map(type, settings[key])) <= {kind}
    ]
    if faults:
        return faults
    num_tokens = len(settings["tokens"])
    if len(set(settings["tokens"])) != num_tokens:
        faults.append("tokens has duplicates")
    faults += [
        f"{key} has {len(settings[key])} entries for {num_tokens} tokens"
        for key in ("token_type", "scores")
        if key in settings and len(settings[key]) != num_tokens
    ]
    faults += [
        f"{key} is {value}, outside of the {num_tokens} tokens"
        for key, value in settings.items()
        if key.endswith("_token_id") and not 0 <= value < num_tokens
    ]
    return faults


def _byte_level_tokenizer(vocabulary: _Vocabulary) -> tuple[dict[str, Any], bool]:
    pre = find_pre_tokenizer(vocabulary.settings.get("pre", "default"))
    # A merge is "left right"; only the space after the first character can be the border.
    merges = [
        [merge[:border], merge[border + 1 :]]
        for merge in vocabulary.settings["merges"]
        if (border := merge.find(" ", 1)) > 0
    ]
    model = _bpe(vocabulary, merges, ignore_merges=pre.ignore_merges)
    decoder = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    parts = _tokenizer_json(vocabulary, model)
    parts.update(normalizer=pre.normalizer, pre_tokenizer=pre.pre_tokenizer, decoder=decoder)
    return parts, pre.adds_bos


def _sentencepiece_tokenizer(vocabulary: _Vocabulary) -> dict[str, Any]:
    # SentencePiece never merges into a control, unknown or byte piece.
    mergeable = {
        token: score
        for token, score, kind in zip(
            vocabulary.tokens, vocabulary.settings["scores"], vocabulary.types, strict=True
        )
        if kind not in (_UNKNOWN, _CONTROL, _BYTE)
    }
    merges = merges_from_scores(mergeable)
    unknown = vocabulary.token("unknown_token_id")
    if unknown is None and _UNKNOWN in vocabulary.types:
        unknown = vocabulary.tokens[vocabulary.types.index(_UNKNOWN)]
    model = _bpe(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    restore = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    normalizers: list[dict[str, Any]] = [replace]
    decoders = [restore, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if vocabulary.settings.get("add_space_prefix", True):
        normalizers.insert(0, {"type": "Prepend", "prepend": _SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    parts = _tokenizer_json(vocabulary, model)
    parts["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
    parts["decoder"] = {"type": "Sequence", "decoders": decoders}
    return parts


def _bpe(vocabulary: _Vocabulary, merges: list[list[str]], **changes: Any) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    vocab = {token: place for place, token in enumerate(vocabulary.tokens)}
    return {**model, **changes, "vocab": vocab, "merges": merges}


def _tokenizer_json(vocabulary: _Vocabulary, model: dict[str, Any]) -> dict[str, Any]:
    added = [
        {
            "id": place,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != _USER_DEFINED,
        }
        for place, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


def _post_processor(
    vocabulary: _Vocabulary, adds_bos: bool, adds_eos: bool
) -> dict[str, Any] | None:
    wanted = (("bos_token_id", adds_bos), ("eos_token_id", adds_eos))
    bos, eos = (vocabulary.token(key) if is_added else None for key, is_added in wanted)
    if bos is None and eos is None:
        return None

    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        pieces = [_template_piece("SpecialToken", bos, type_id)] if bos is not None else []
        pieces.append(_template_piece("Sequence", name, type_id))
        if eos is not None:
            pieces.append(_template_piece("SpecialToken", eos, type_id))
        return pieces

    used = {token: vocabulary.tokens.index(token) for token in (bos, eos) if token is not None}
    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": [*sequence("A", 0), *sequence("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [place], "tokens": [token]} for token, place in used.items()
        },
    }


def _template_piece(kind: str, name: str, type_id: int) -> dict[str, Any]:
    return {kind: {"id": name, "type_id": type_id}}


def _special_tokens(vocabulary: _Vocabulary) -> dict[str, Any]:
    named = {
        "bos_token": vocabulary.token("bos_token_id"),
        "eos_token": vocabulary.token("eos_token_id"),
        "unk_token": vocabulary.token("unknown_token_id"),
        "pad_token": vocabulary.token("padding_token_id"),
    }
    return {name: token for name, token in named.items() if token is not None}


def _generation_config(vocabulary: _Vocabulary) -> dict[str, Any]:
    """Collect the ids that generation needs; ends of turn and message end an answer too."""
    settings = vocabulary.settings
    ends = [settings.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    eos_ids = list(dict.fromkeys(end for end in ends if end is not None))
    ids = {
        "bos_token_id": settings.get("bos_token_id"),
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids or None,
        "pad_token_id": settings.get("padding_token_id"),
    }
    return {name: value for name, value in ids.items() if value is not None}
