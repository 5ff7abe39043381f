"""Tokenizers for the text room's tests: the sample model's, and a tiny Llama-like one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import pytest

from tests.unit.text.tiny_vocabulary import tiny_llama_metadata
from tidemill.text.gguf_tokenizer import tokenizer_files_from_gguf
from tidemill.text.tokenizer import Tokenizer


def _write(metadata: Mapping[str, object], directory: Path) -> Path:
    for name, text in tokenizer_files_from_gguf(metadata).items():
        (directory / name).write_text(text, encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def sample_metadata(sample_gguf: Path) -> dict[str, object]:
    """Return the sample's metadata as plain values."""
    fields = gguf.GGUFReader(sample_gguf).fields
    return {name: field.contents() for name, field in fields.items()}


@pytest.fixture(scope="session")
def sample_directory(
    sample_metadata: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return _write(sample_metadata, tmp_path_factory.mktemp("sample_tokenizer"))


@pytest.fixture(scope="session")
def sample_tokenizer(sample_directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(sample_directory)


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tiny_llama_metadata(), tmp_path_factory.mktemp("llama_tokenizer"))


@pytest.fixture(scope="session")
def llama_tokenizer(llama_directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(llama_directory)
