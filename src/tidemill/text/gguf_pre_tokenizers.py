"""How a byte-level vocabulary cuts text before merging, by GGUF's name for it.

In: the value of tokenizer.ggml.pre. Out: the parts of tokenizer.json that GGUF leaves out.
The regular expressions are those of the models' own tokenizer.json.
Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_bpe, and its convert_hf_to_gguf.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tidemill.base.errors import UnsupportedError

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """Parts of a tokenizer.json: cutting, normalising, and whether whole words skip the merges."""

    pre_tokenizer: dict[str, Any]
    normalizer: dict[str, Any] | None = None
    ignore_merges: bool = False
    adds_bos: bool = False


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _sequence(*stages: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(stages)}


_GPT2 = PreTokenizer(_byte_level(use_regex=True))
_SINGLE_DIGITS = PreTokenizer(
    _sequence({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True))
)
_LLAMA3 = PreTokenizer(
    _sequence(_split(_CASELESS_WORDS % r"\p{N}{1,3}"), _byte_level(use_regex=False)),
    ignore_merges=True,
    adds_bos=True,
)
_QWEN2 = PreTokenizer(
    _sequence(_split(_CASELESS_WORDS % r"\p{N}"), _byte_level(use_regex=False)),
    normalizer={"type": "NFC"},
)
# Files older than tokenizer.ggml.pre do not say how they cut; llama.cpp's guess is ours.
_DEFAULT = PreTokenizer(
    _sequence(
        _split(r"[\p{P}\$\+<=>\^~\|]+"),
        _split(_GPT2_WORDS),
        _split(r"\p{N}+"),
        _split(r"[0-9][0-9][0-9]"),
        _byte_level(use_regex=False),
    )
)

NAME_TO_PRE_TOKENIZER = {
    "default": _DEFAULT,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
}


def find_pre_tokenizer(name: str) -> PreTokenizer:
    """Look a pre-tokenizer up by its GGUF name.

    Raises: UnsupportedError if the name is not in the table.
    """
    if name in NAME_TO_PRE_TOKENIZER:
        return NAME_TO_PRE_TOKENIZER[name]
    raise UnsupportedError(
        "this GGUF file's pre-tokenizer is not known",
        where="GGUF metadata, tokenizer.ggml.pre",
        expected="one of " + ", ".join(sorted(NAME_TO_PRE_TOKENIZER)),
        got=name,
        hint="convert from the model's Hugging Face directory, which has its tokenizer.json",
    )
