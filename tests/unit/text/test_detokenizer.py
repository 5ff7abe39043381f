"""Streamed text joined is the text of all ids, whatever the ids and however they arrive."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models

from tests.unit.text.tiny_vocabulary import HARD_TEXTS
from tidemill.text.detokenizer import IncrementalDetokenizer
from tidemill.text.tokenizer import Tokenizer


def split_randomly(ids: list[int], chance: random.Random) -> Iterator[list[int]]:
    start = 0
    while start < len(ids):
        end = start + chance.choice([0, 1, 1, 1, 2, 7])
        yield ids[start:end]
        start = end


def stream(tokenizer: Tokenizer, pushes: Iterable[list[int]], skip: bool = True) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    return [*(detokenizer.push(push) for push in pushes), detokenizer.finish()]


@pytest.mark.parametrize("seed", range(40))
def test_stream_of_random_sample_tokens_equals_plain_decode(
    sample_tokenizer: Tokenizer, seed: int
) -> None:
    chance = random.Random(seed)
    ids = [chance.randrange(sample_tokenizer.vocab_size) for _ in range(chance.choice([0, 1, 97]))]
    # Byte-like tokens are rare in the vocabulary: mix in many, so that most runs are malformed.
    byte_ids = [sample_tokenizer.encode(chr(place))[0] for place in range(0x80, 0x800, 7)]
    ids += [chance.choice(byte_ids) for _ in range(97)]
    ids += sample_tokenizer.encode(chance.choice(HARD_TEXTS))[: chance.randrange(9)]
    chance.shuffle(ids)
    for skip in (True, False):
        pieces = stream(sample_tokenizer, split_randomly(ids, chance), skip)
        assert "".join(pieces) == sample_tokenizer.decode(ids, skip), f"seed {seed}"


def test_every_sample_token_alone_equals_plain_decode(sample_tokenizer: Tokenizer) -> None:
    for token_id in range(sample_tokenizer.vocab_size):
        expected = sample_tokenizer.decode([token_id], skip_special_tokens=False)
        assert sample_tokenizer.decode_continuation([token_id], False) == expected, token_id


@pytest.mark.parametrize("text", HARD_TEXTS)
@pytest.mark.parametrize("name", ["sample_tokenizer", "llama_tokenizer"])
def test_stream_of_real_text_never_shows_half_a_character(
    name: str, text: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(text, add_special_tokens=False)
    # Llama's encoder puts a space before any text; a continuation shows it.
    expected = " " + text if text and name == "llama_tokenizer" else text
    sent = ""
    for piece in stream(tokenizer, [[token_id] for token_id in ids]):
        sent += piece
        assert expected.startswith(sent)
    assert sent == expected


@pytest.mark.parametrize("seed", range(40))
def test_stream_of_llama_tokens_equals_decode_after_a_prompt(
    llama_directory: Path, llama_tokenizer: Tokenizer, seed: int
) -> None:
    chance = random.Random(seed)
    judge = tokenizers.Tokenizer.from_file(str(llama_directory / "tokenizer.json"))
    pieces = range(259, llama_tokenizer.vocab_size)
    ids: list[int] = []
    for _ in range(31):
        ids += [chance.choice(pieces) for _ in range(chance.randrange(4))]
        ids += [3 + byte for byte in chance.choice(["\U0001f600", "\u00e9", " ", "A"]).encode()]
        ids += [chance.choice([0, 1, 2])] * chance.randrange(2)
    prompt = llama_tokenizer.encode("hello")
    expected = judge.decode(prompt + ids).removeprefix("hello")
    assert "".join(stream(llama_tokenizer, split_randomly(ids, chance))) == expected
    assert llama_tokenizer.decode_continuation(ids) == expected


@pytest.mark.parametrize("seed", range(40))
def test_malformed_byte_tokens_spoil_only_themselves(llama_tokenizer: Tokenizer, seed: int) -> None:
    chance = random.Random(seed)
    ids = [
        chance.choice([3 + chance.randrange(256), chance.randrange(3, llama_tokenizer.vocab_size)])
        for _ in range(211)
    ]
    byte_ids = {3 + byte: bytes([byte]) for byte in range(256)}
    only_bytes = [token_id for token_id in ids if token_id in byte_ids]
    raw = b"".join(byte_ids[token_id] for token_id in only_bytes)
    joined = "".join(stream(llama_tokenizer, split_randomly(only_bytes, chance)))
    assert joined == raw.decode("utf-8", "replace")
    joined = "".join(stream(llama_tokenizer, split_randomly(ids, chance)))
    assert joined == llama_tokenizer.decode_continuation(ids)


def test_continuation_keeps_the_space_that_plain_decode_strips(llama_tokenizer: Tokenizer) -> None:
    ids = llama_tokenizer.encode("hello world", add_special_tokens=False)
    generated = ids[-1:]
    assert llama_tokenizer.decode(generated) == "world"
    assert llama_tokenizer.decode_continuation(generated) == " world"
    assert stream(llama_tokenizer, [generated]) == [" world", ""]


@pytest.mark.parametrize(
    ("decoder", "tokens", "expected"),
    [
        (decoders.Metaspace(), ["\u2581a", "b", "\u2581c"], [" a", "b", " c"]),
        (decoders.WordPiece(), ["b", "##c", "a"], [" b", "c", " a"]),
        (None, ["b", "c"], [" b", " c"]),
    ],
    ids=["metaspace", "wordpiece", "none"],
)
def test_other_decoders_continue_a_text_as_after_a_prompt(
    decoder: decoders.Decoder | None, tokens: list[str], expected: list[str], tmp_path: Path
) -> None:
    vocab = {token: place for place, token in enumerate(dict.fromkeys(["a", "z", *tokens]))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="a"))
    if decoder is not None:
        backend.decoder = decoder
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    ids = [vocab[token] for token in tokens]
    assert stream(tokenizer, [[token_id] for token_id in ids])[:-1] == expected
    prompt = [vocab["z"]]
    assert "z" + "".join(expected) == tokenizer.decode(prompt + ids)


def test_unfinished_character_is_held_and_then_marked(sample_tokenizer: Tokenizer) -> None:
    ids = sample_tokenizer.encode("\U0001f9a4")
    assert len(ids) > 1
    pieces = stream(sample_tokenizer, [[token_id] for token_id in ids[:-1]])
    assert pieces == [""] * (len(ids) - 1) + ["\ufffd"]


def test_ids_beyond_the_vocabulary_add_no_text(sample_tokenizer: Tokenizer) -> None:
    assert stream(sample_tokenizer, [[sample_tokenizer.vocab_size], [-1], [10**9]]) == [""] * 4


def test_special_tokens_show_only_when_asked_for(sample_tokenizer: Tokenizer) -> None:
    ids = sample_tokenizer.encode("a<|im_end|>b")
    assert "".join(stream(sample_tokenizer, [ids])) == "ab"
    assert "".join(stream(sample_tokenizer, [ids], skip=False)) == "a<|im_end|>b"


class CountingTokenizer(Tokenizer):
    """A tokenizer that counts the ids it is asked about."""

    num_asked = 0

    def token_ids_to_bytes(
        self, token_ids: Iterable[int], skip_special_tokens: bool = True
    ) -> bytes:
        ids = list(token_ids)
        self.num_asked += len(ids)
        return super().token_ids_to_bytes(ids, skip_special_tokens)


def test_each_token_is_looked_at_once_even_in_an_endless_malformed_run(
    sample_directory: Path,
) -> None:
    tokenizer = CountingTokenizer.from_directory(sample_directory)
    assert isinstance(tokenizer, CountingTokenizer)
    half = tokenizer.encode("\u00e9")[:1]
    pieces = stream(tokenizer, [half] * 1009)
    assert tokenizer.num_asked == 1009
    assert "".join(pieces) == tokenizer.decode(half * 1009)
