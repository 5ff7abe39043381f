"""Tokenizers rebuilt from GGUF metadata give the ids of the models' own tokenizers."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import generate_merges

from tests.unit.text.tiny_vocabulary import HARD_TEXTS, SPACE, tiny_llama_metadata
from tidemill.text.gguf_tokenizer import tokenizer_files_from_gguf
from tidemill.text.spm_merges import merges_from_scores
from tidemill.text.tokenizer import Tokenizer

CASELESS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    *HARD_TEXTS,
    "I'LL pay 12345,67 in 2024; it's 3\u00b2.\n\n\n  ok",
    "a+b=c $x <|im_end|>e\u0301",
]


def rebuilt(metadata: dict[str, object], **changes: object) -> tokenizers.Tokenizer:
    keys = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    files = tokenizer_files_from_gguf({**metadata, **keys})
    return tokenizers.Tokenizer.from_str(files["tokenizer.json"])


def byte_level_judge(metadata: dict[str, object], ignore_merges: bool) -> tokenizers.Tokenizer:
    """Build the sample's vocabulary through the library's own classes."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = metadata["tokenizer.ggml.merges"]
    types = metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list) and isinstance(merges, list) and isinstance(types, list)
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    vocab = {token: place for place, token in enumerate(tokens)}
    judge = tokenizers.Tokenizer(models.BPE(vocab, pairs, ignore_merges=ignore_merges))
    judge.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    judge.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return judge


def test_sample_gives_the_ids_known_from_its_own_tokenizer(sample_tokenizer: Tokenizer) -> None:
    known = {
        "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
        "Caf\u00e9 d\u00e9j\u00e0 vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
        "  multiple   spaces": [216, 2701, 256, 5600],
    }
    for text, ids in known.items():
        assert sample_tokenizer.encode(text) == ids


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_byte_level_ids_equal_an_independently_built_tokenizer(
    sample_metadata: dict[str, object], pre: str
) -> None:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    quiet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts = {
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]),
        "gpt-2": words,
        "llama-bpe": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(CASELESS), "isolated"), quiet]
        ),
        "qwen2": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(CASELESS.replace("{1,3}", "")), "isolated"), quiet]
        ),
    }
    judge = byte_level_judge(sample_metadata, ignore_merges=pre == "llama-bpe")
    judge.pre_tokenizer = cuts[pre]
    if pre == "qwen2":
        judge.normalizer = normalizers.NFC()
    ours = rebuilt(sample_metadata, pre=pre, add_bos_token=False)
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == judge.encode(text).ids
        assert ours.decode(ids) == judge.decode(ids)


def test_default_cuts_digits_by_three_and_punctuation_from_letters(
    sample_metadata: dict[str, object],
) -> None:
    ours = rebuilt(sample_metadata, pre="default")
    text = "x=$12345 a.b"
    pieces = [text[slice(*span)] for _, span in ours.pre_tokenizer.pre_tokenize_str(text)]
    assert pieces == ["x", "=$", "123", "45", " a", ".", "b"]


@pytest.mark.parametrize("text", TEXTS)
def test_sample_text_survives_the_round_trip(sample_tokenizer: Tokenizer, text: str) -> None:
    ids = sample_tokenizer.encode(text)
    assert sample_tokenizer.decode(ids, skip_special_tokens=False) == text


def test_sample_digits_and_special_tokens_are_single_ids(sample_tokenizer: Tokenizer) -> None:
    assert len(sample_tokenizer.encode("2024")) == 4
    assert sample_tokenizer.encode("<|im_start|>") == [1]
    assert sample_tokenizer.encode("<|im_end|>") == [2]
    assert sample_tokenizer.encode("<repo_name>") == [3]
    assert (sample_tokenizer.eos_token_ids, sample_tokenizer.pad_token_id) == ((2,), 2)


def test_merges_of_scores_equal_those_of_transformers() -> None:
    metadata = tiny_llama_metadata()
    tokens, scores = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores"))
    assert isinstance(tokens, list) and isinstance(scores, list)
    pieces = dict(list(zip(tokens, scores, strict=True))[259:-1])
    vocab = {piece: place for place, piece in enumerate(pieces)}
    expected = generate_merges(vocab, pieces)
    assert [tuple(merge) for merge in merges_from_scores(pieces)] == expected
    assert len(expected) > 30


def greedy_sentencepiece(text: str, piece_to_score: dict[str, float]) -> list[str]:
    """Join, again and again, the neighbours that give the best piece, the leftmost of equals."""
    parts = list(text)
    while True:
        joined = [
            (-piece_to_score[left + right], place)
            for place, (left, right) in enumerate(pairwise(parts))
            if left + right in piece_to_score
        ]
        if not joined:
            return parts
        _, place = min(joined)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@pytest.mark.parametrize(
    "text", ["hello world", "lower lowest", "  the banana", "hell\u00e9 \u4f60", "na na\nna", "w"]
)
def test_llama_ids_equal_greedy_joining_by_score(text: str) -> None:
    # With a score of its own for each piece there are no ties, so the greedy rule is exact.
    metadata = tiny_llama_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    scores = [-float(place) for place in range(len(tokens))]
    piece_to_score = dict(list(zip(tokens, scores, strict=True))[259:-1])
    ids = []
    for part in greedy_sentencepiece(SPACE + text.replace(" ", SPACE), piece_to_score):
        is_piece = part in piece_to_score
        ids += [tokens.index(part)] if is_piece else [3 + byte for byte in part.encode()]
    ours = rebuilt(metadata, scores=scores)
    assert ours.encode(text).ids == [1, *ids]
    assert ours.decode(ids) == text


def test_llama_control_tokens_are_special_and_user_tokens_are_not(
    llama_tokenizer: Tokenizer,
) -> None:
    user = llama_tokenizer.token_id("<|user|>")
    assert llama_tokenizer.encode("<s><|user|></s>", add_special_tokens=False) == [1, user, 2]
    assert llama_tokenizer.decode([1, user or 0, 2]) == "<|user|>"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1]),
        ({"add_bos_token": False}, []),
        ({"add_eos_token": True}, [1, 2]),
        ({"add_bos_token": False, "add_eos_token": True}, [2]),
    ],
)
def test_llama_prompt_is_framed_as_the_metadata_says(
    changes: dict[str, object], expected: list[int]
) -> None:
    frame = [token for token in rebuilt(tiny_llama_metadata(), **changes).encode("na").ids]
    assert [token for token in frame if token in (1, 2)] == expected


def test_llama_without_space_prefix_adds_and_strips_none() -> None:
    ours = rebuilt(tiny_llama_metadata(), add_space_prefix=False, add_bos_token=False)
    for text in (" hello", "hello"):
        assert ours.decode(ours.encode(text).ids) == text
    assert ours.token_to_id("hello") in ours.encode("hello").ids


def test_ends_of_turn_and_message_end_an_answer_too(sample_metadata: dict[str, object]) -> None:
    ends = {"tokenizer.ggml.eot_token_id": 4, "tokenizer.ggml.eom_token_id": 2}
    files = tokenizer_files_from_gguf({**sample_metadata, **ends})
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [2, 4]
    single = tokenizer_files_from_gguf(sample_metadata)["generation_config.json"]
    assert json.loads(single) == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_merges_with_spaces_inside_are_cut_after_the_first_character(tmp_path: Path) -> None:
    tokens = ["a", "b", "ab", "\u0120", "\u0120a"]
    metadata: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b", "\u0120 a"],
    }
    files = tokenizer_files_from_gguf(metadata)
    assert json.loads(files["tokenizer.json"])["model"]["merges"] == [["a", "b"], ["\u0120", "a"]]
    assert rebuilt(metadata).encode("ab a").ids == [2, 4]
