"""The tokenizer agrees with transformers, reads its settings, and starts fast."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from tests.unit.text.tiny_vocabulary import HARD_TEXTS
from tidemill.text.tokenizer import Tokenizer


def load_with(directory: Path, tmp_path: Path, files: dict[str, Any]) -> Tokenizer:
    """Load a copy of a tokenizer with some of its files replaced; None removes a file."""
    copy = tmp_path / "tokenizer"
    shutil.copytree(directory, copy)
    for name, value in files.items():
        if value is None:
            (copy / name).unlink()
        else:
            (copy / name).write_text(json.dumps(value))
    return Tokenizer.from_directory(copy)


@pytest.mark.parametrize("name", ["sample_directory", "llama_directory"])
def test_ids_and_text_equal_those_of_transformers(
    name: str, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(name)
    ours = Tokenizer.from_directory(directory)
    judge = PreTrainedTokenizerFast.from_pretrained(directory)
    for text in HARD_TEXTS:
        for add in (True, False):
            ids = ours.encode(text, add_special_tokens=add)
            assert ids == judge.encode(text, add_special_tokens=add)
            for skip in (True, False):
                expected = judge.decode(
                    ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
                )
                assert ours.decode(ids, skip_special_tokens=skip) == expected
    assert ours.eos_token_id == judge.eos_token_id
    assert ours.bos_token_id == judge.bos_token_id
    assert ours.pad_token_id == judge.pad_token_id
    assert ours.vocab_size == len(judge)


def test_chat_prompt_of_the_sample_equals_that_of_transformers(
    sample_directory: Path, sample_tokenizer: Tokenizer
) -> None:
    judge = PreTrainedTokenizerFast.from_pretrained(sample_directory)
    messages = [{"role": "user", "content": "What is 12?"}]
    expected = judge.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert sample_tokenizer.apply_chat_template(messages) == expected


def test_end_ids_join_the_tokenizers_own_and_the_list_of_generation_config(
    sample_directory: Path, tmp_path: Path
) -> None:
    files = {"generation_config.json": {"eos_token_id": [0, 2, 7]}}
    tokenizer = load_with(sample_directory, tmp_path, files)
    assert tokenizer.eos_token_id == 2
    assert tokenizer.eos_token_ids == (2, 0, 7)


def test_special_tokens_are_read_as_objects_and_from_the_older_map(
    sample_directory: Path, tmp_path: Path
) -> None:
    files: dict[str, Any] = {
        "tokenizer_config.json": {"bos_token": {"content": "<|im_start|>"}, "pad_token": None},
        "special_tokens_map.json": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "generation_config.json": {"pad_token_id": 9},
    }
    tokenizer = load_with(sample_directory, tmp_path, files)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2,))
    assert tokenizer.pad_token_id == 0


def test_tokenizer_json_alone_is_enough(sample_directory: Path, tmp_path: Path) -> None:
    files = {"tokenizer_config.json": None, "generation_config.json": None}
    tokenizer = load_with(sample_directory, tmp_path, files)
    assert tokenizer.eos_token_id is None
    assert tokenizer.eos_token_ids == ()
    assert tokenizer.token_id("<|im_end|>") == 2
    assert tokenizer.token_id("no such token") is None


def test_tokenizer_json_alone_decides_on_bos_and_eos(llama_directory: Path, tmp_path: Path) -> None:
    config = json.loads((llama_directory / "tokenizer_config.json").read_text())
    config |= {"add_bos_token": False, "add_eos_token": True}
    tokenizer = load_with(llama_directory, tmp_path, {"tokenizer_config.json": config})
    judge = PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")
    ids = tokenizer.encode("hello world")
    assert ids == judge.encode("hello world")
    assert (ids[0], ids[-1] == 2) == (1, False)


def test_template_file_wins_over_the_config_and_a_list_has_a_default(
    sample_directory: Path, tmp_path: Path
) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    files: dict[str, Any] = {"tokenizer_config.json": {"chat_template": named}}
    tokenizer = load_with(sample_directory, tmp_path, files)
    message = {"role": "user", "content": ""}
    assert tokenizer.apply_chat_template([message]) == "plain"
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("own file {{ thinking }}")
    tokenizer = Tokenizer.from_directory(tmp_path / "tokenizer")
    assert tokenizer.apply_chat_template([message], variables={"thinking": 1}) == "own file 1"


def test_padding_and_cutting_asked_for_by_the_file_are_not_done(
    sample_directory: Path, tmp_path: Path
) -> None:
    content = json.loads((sample_directory / "tokenizer.json").read_text())
    content["truncation"] = {
        "max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right",
    }  # fmt: skip
    tokenizer = load_with(sample_directory, tmp_path, {"tokenizer.json": content})
    assert len(tokenizer.encode("one two three four five six")) == 6


def test_load_takes_little_more_than_the_library_alone(sample_directory: Path) -> None:
    # About 0.07 s for the sample on a quiet machine; a ratio holds on a busy one too.
    ours_s, library_s = [], []
    for _ in range(5):
        start = time.perf_counter()
        tokenizers.Tokenizer.from_file(str(sample_directory / "tokenizer.json"))
        middle = time.perf_counter()
        Tokenizer.from_directory(sample_directory)
        ours_s.append(time.perf_counter() - middle)
        library_s.append(middle - start)
    assert min(ours_s) < 1.5 * min(library_s)


def test_import_leaves_templates_and_heavy_packages_alone() -> None:
    code = (
        "import sys, tidemill.text.tokenizer, tidemill.text.detokenizer;"
        "print([name for name in ('jinja2', 'numpy', 'llvmlite') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
