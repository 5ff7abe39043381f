"""One test per error of the text room, named for the mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill.base.errors import CheckpointError, InvalidRequestError, UnsupportedError
from tidemill.text.chat_template import ChatTemplate
from tidemill.text.gguf_tokenizer import tokenizer_files_from_gguf
from tidemill.text.stop_strings import StopStringMatcher
from tidemill.text.tokenizer import Tokenizer

METADATA: dict[str, object] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"],
}
Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Return a writer of a small tokenizer with some files' content replaced."""

    def write(**changes: str) -> Path:
        files = tokenizer_files_from_gguf(METADATA)
        for stem, text in changes.items():
            files[f"{stem}.json"] = text
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def assert_four_parts(error: Any) -> None:
    assert error.what and error.where and error.expected and error.got and error.hint


def test_directory_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
        Tokenizer.from_directory(tmp_path)
    assert_four_parts(caught.value)


def test_truncated_tokenizer_json(written: Written) -> None:
    whole = tokenizer_files_from_gguf(METADATA)["tokenizer.json"]
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        Tokenizer.from_directory(written(tokenizer=whole[: len(whole) // 2]))
    assert_four_parts(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_tokenizer_config_that_is_no_json_object(written: Written, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json") as caught:
        Tokenizer.from_directory(written(tokenizer_config=text))
    assert_four_parts(caught.value)


@pytest.mark.parametrize("value", ["2", -1, [2, None], True])
def test_end_id_that_is_no_token_id(written: Written, value: object) -> None:
    text = json.dumps({"eos_token_id": value})
    with pytest.raises(CheckpointError, match="eos_token_id") as caught:
        Tokenizer.from_directory(written(generation_config=text))
    assert_four_parts(caught.value)


def test_decoder_that_looks_at_neighbours(written: Written) -> None:
    content = json.loads(tokenizer_files_from_gguf(METADATA)["tokenizer.json"])
    content["decoder"] = {"type": "BPEDecoder", "suffix": "</w>"}
    with pytest.raises(UnsupportedError, match="BPEDecoder") as caught:
        Tokenizer.from_directory(written(tokenizer=json.dumps(content)))
    assert_four_parts(caught.value)


def test_chat_with_a_model_without_template(written: Written) -> None:
    tokenizer = Tokenizer.from_directory(written())
    with pytest.raises(InvalidRequestError, match="cannot chat") as caught:
        tokenizer.apply_chat_template([{"role": "user", "content": "hello"}])
    assert_four_parts(caught.value)


def test_chat_template_with_a_syntax_error() -> None:
    with pytest.raises(CheckpointError, match="line 2") as caught:
        ChatTemplate("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    assert_four_parts(caught.value)


def test_roles_that_the_template_refuses() -> None:
    template = ChatTemplate("{{ raise_exception('Roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="Roles must alternate") as caught:
        template.render([{"role": "assistant", "content": "hello"}], {})
    assert_four_parts(caught.value)
    assert "roles: assistant" in caught.value.got


def test_message_without_content() -> None:
    template = ChatTemplate("{{ messages[0].content + '.' }}")
    with pytest.raises(InvalidRequestError, match="content") as caught:
        template.render([{"role": "user"}], {})
    assert_four_parts(caught.value)


@pytest.mark.parametrize("message", ["hello", {"content": "hello"}, {"role": 1}, None])
def test_message_without_role(message: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages\[1\]") as caught:
        ChatTemplate("").render([{"role": "user", "content": "a"}, message], {})
    assert_four_parts(caught.value)


@pytest.mark.parametrize("stops", [[""], ["a", ""], [7], "stop"])
def test_stop_string_that_is_empty_or_no_string(stops: Any) -> None:
    with pytest.raises(InvalidRequestError, match="stop string") as caught:
        StopStringMatcher(stops)
    assert_four_parts(caught.value)


def test_gguf_pre_tokenizer_that_is_not_known() -> None:
    with pytest.raises(UnsupportedError, match="got: viking") as caught:
        tokenizer_files_from_gguf({**METADATA, "tokenizer.ggml.pre": "viking"})
    assert "smollm" in caught.value.expected
    assert_four_parts(caught.value)


def test_gguf_tokenizer_family_that_is_not_known() -> None:
    with pytest.raises(UnsupportedError, match="got: rwkv") as caught:
        tokenizer_files_from_gguf({"tokenizer.ggml.model": "rwkv"})
    assert_four_parts(caught.value)


def test_gguf_without_tokenizer_metadata() -> None:
    with pytest.raises(CheckpointError, match="model is missing") as caught:
        tokenizer_files_from_gguf({"general.architecture": "llama"})
    assert_four_parts(caught.value)


def test_gguf_tokenizer_faults_are_listed_together() -> None:
    keys = {
        "tokens": ["a", "b", "a"], "token_type": [1], "eos_token_id": 3, "bos_token_id": -1,
    }  # fmt: skip
    metadata = {**METADATA, **{f"tokenizer.ggml.{key}": value for key, value in keys.items()}}
    with pytest.raises(CheckpointError) as caught:
        tokenizer_files_from_gguf(metadata)
    for fault in ("duplicates", "token_type has 1", "eos_token_id is 3", "bos_token_id is -1"):
        assert fault in caught.value.got
    wrong = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": "abc"}
    with pytest.raises(CheckpointError, match=r"merges is missing; tokens is of type str"):
        tokenizer_files_from_gguf(wrong)
