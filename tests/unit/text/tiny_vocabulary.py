"""A tiny SentencePiece-like vocabulary as GGUF metadata, and text that is hard on tokenizers."""

from __future__ import annotations

SPACE = "\u2581"
WORDS = ["hello", "world", "low", "lower", "er", "we", "llo", "the", "na"]

# Family emoji (ZWJ), flags, CJK, Hangul, combining marks, Arabic, astral letters, runs of blanks.
HARD_TEXTS = [
    "Hello world! 1234 low lower",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 and \U0001f1eb\U0001f1f7\U0001f44d\U0001f3fd!",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\uc548\ub155 cafe\u0301 n\u0303 Z\u0351\u036b\u0343 \u0645\u0631\u062d\u0628\u0627",
    "  two  spaces\n\n\tand a tab \r\n end ",
    "\U0001d573\U0001d58a \u00e9\u00df \ufffd stays",
    " leading",
    "x",
    "",
]


def tiny_llama_metadata() -> dict[str, object]:
    """Return a Llama-like vocabulary: specials, 256 bytes, then pieces by falling score."""
    pieces = [SPACE, *sorted(set("".join(WORDS)))]
    for word in [*WORDS, *(SPACE + word for word in WORDS)]:
        pieces += [word[:end] for end in range(2, len(word) + 1)]
    pieces = list(dict.fromkeys(pieces))
    # Longer pieces score higher here, with ties on purpose: borders then depend on tie-breaking.
    scores = [-float(40 - 3 * len(piece)) for piece in pieces]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *byte_tokens, *pieces, "<|user|>"],
        "tokenizer.ggml.scores": [0.0] * 259 + scores + [-1000.0],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces), 4],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
