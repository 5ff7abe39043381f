"""The mistakes that every release must answer well, each through the command itself.

A message of four parts on stderr, no traceback, an exit code that is not zero, and not one file
more or less than before. Finer cases of each stand in the other files here.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.base import target
from tidemill.engine import native_code
from tidemill.engine.format import FORMAT_VERSION
from tidemill.frontends.cli.main import app
from tidemill.frontends.cli.shell import EXIT_FAILED, EXIT_USAGE, run_app
from tidemill.frontends.triton.deploy import DeployRequest, deploy
from tidemill.frontends.triton.endpoints import choose_endpoints

Fails = Callable[..., str]

MAX_INPUT_LEN = 16


@pytest.fixture(scope="module")
def artifacts(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a good model, checkpoint and engine."""
    directory = tmp_path_factory.mktemp("must_hold")
    shutil.copytree(make_tiny_llama(TinyLlama()), directory / "model")
    convert(ConvertRequest(directory / "model", directory / "checkpoint"))
    limits: dict[str, Any] = {
        "max_batch_size": 4,
        "max_seq_len": 64,
        "max_input_len": MAX_INPUT_LEN,
    }
    build(BuildRequest(directory / "checkpoint", directory / "engine", target=None, **limits))
    return directory


@pytest.fixture
def place(artifacts: Path, tmp_path: Path) -> Path:
    """Return a copy of the artifacts that a test may damage."""
    return Path(shutil.copytree(artifacts, tmp_path / "place"))


def entries_below(directory: Path) -> dict[Path, bytes]:
    """What is there, directories as empty; Python's caches beside a model.py do not count."""
    found = [path for path in directory.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.read_bytes() if path.is_file() else b"" for path in found}


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Return a function that runs a command, expects it to fail well, and returns its message."""

    def run(*arguments: str | Path, exit_code: int = EXIT_FAILED) -> str:
        before = entries_below(tmp_path)
        texts = [str(argument) for argument in arguments]
        if texts[0] == "serve":  # becomes a process of its own
            command = [sys.executable, "-m", "tidemill", *texts]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            code, printed = done.returncode, done.stderr
        else:
            capsys.readouterr()
            code, printed = run_app(app, texts), capsys.readouterr().err
        assert code == exit_code, printed
        assert all(part in printed for part in ("error: ", "where: ", "expected: ", "got: "))
        assert "try: " in printed and "Traceback" not in printed
        assert entries_below(tmp_path) == before
        return printed

    return run


def convert_arguments(place: Path, model: str = "model") -> list[str | Path]:
    return ["convert", "--model_dir", place / model, "--output_dir", place / "new"]


def build_arguments(place: Path) -> list[str | Path]:
    return ["build", "--checkpoint_dir", place / "checkpoint", "--output_dir", place / "new"]


def run_arguments(place: Path, text: str = "Hello") -> list[str | Path]:
    return ["run", "--engine_dir", place / "engine", "--input_text", text]


def truncate(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


@pytest.mark.parametrize(
    ("missing", "part"),
    [
        ("model", "no such path"),
        ("model/config.json", "config.json"),
        ("model/model.safetensors", "expected: *.safetensors; got: none"),
    ],
)
def test_missing_file_to_convert(place: Path, fails: Fails, missing: str, part: str) -> None:
    path = place / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert part in fails(*convert_arguments(place))


@pytest.mark.parametrize("missing", ["config.json", "rank0.safetensors"])
def test_missing_file_to_build(place: Path, fails: Fails, missing: str) -> None:
    (place / "checkpoint" / missing).unlink()
    assert missing in fails(*build_arguments(place))


def test_missing_engine_to_run(place: Path, fails: Fails) -> None:
    (place / "engine" / "rank0.engine").unlink()
    assert "a directory without any .engine file" in fails(*run_arguments(place))


@pytest.mark.parametrize("num_bytes", [1, 4097])
def test_truncated_safetensors(place: Path, fails: Fails, num_bytes: int) -> None:
    truncate(place / "model" / "model.safetensors", num_bytes)
    assert "model.safetensors" in fails(*convert_arguments(place))
    truncate(place / "checkpoint" / "rank0.safetensors", num_bytes)
    assert "rank0.safetensors" in fails(*build_arguments(place))


@pytest.mark.parametrize("num_bytes", [1, 150])
def test_truncated_gguf(place: Path, fails: Fails, num_bytes: int) -> None:
    path = place / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.ones((7, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    truncate(path, num_bytes)
    assert "truncated" in fails(*convert_arguments(place, "model.gguf"))


def test_wrong_shapes(place: Path, fails: Fails) -> None:
    for directory, name in (("model", "model"), ("checkpoint", "rank0")):
        path = place / directory / f"{name}.safetensors"
        weights = load_file(path)
        swapped = [key for key in weights if key.endswith("proj.weight")][:2]
        save_file({**weights, **{key: weights[key].T.copy() for key in swapped}}, path)
    printed = fails(*convert_arguments(place))
    assert "model.layers.0" in printed
    assert "transformer.layers.0" in fails(*build_arguments(place))


@pytest.mark.parametrize(("directory", "key"), [("model", "architectures"), ("checkpoint", "")])
def test_unknown_architecture(place: Path, fails: Fails, directory: str, key: str) -> None:
    path = place / directory / "config.json"
    change = {key: ["MambaForCausalLM"]} if key else {"architecture": "MambaForCausalLM"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    arguments = convert_arguments(place) if key else build_arguments(place)
    printed = fails(*arguments)
    assert "MambaForCausalLM" in printed and "LlamaForCausalLM" in printed


def test_engine_of_another_version(place: Path, fails: Fails) -> None:
    path = place / "engine" / "rank0.engine"
    data = bytearray(path.read_bytes())
    data[8:12] = (FORMAT_VERSION + 1).to_bytes(4, "little")
    path.write_bytes(data)
    printed = fails(*run_arguments(place))
    assert f"got: engine format version {FORMAT_VERSION + 1}" in printed
    assert "tidemill build" in printed


def test_engine_for_another_cpu(place: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    monkeypatch.setattr(target, "host_features", lambda: frozenset({"sse2"}))
    monkeypatch.setattr(native_code, "host_features", target.host_features)
    printed = fails(*run_arguments(place))
    assert "the engine was built for another CPU" in printed and "tidemill build" in printed


def test_prompt_over_max_input_len(place: Path, fails: Fails) -> None:
    printed = fails(*run_arguments(place, "x" * (MAX_INPUT_LEN + 1)))
    assert "max_input_len" in printed and str(MAX_INPUT_LEN + 1) in printed


def test_unknown_flag_value(place: Path, fails: Fails) -> None:
    printed = fails(*convert_arguments(place), "--dtype", "float61", exit_code=EXIT_USAGE)
    assert "--dtype" in printed and "float16" in printed
    printed = fails(*build_arguments(place), "--gemm_plugin", "int3", exit_code=EXIT_USAGE)
    assert "--gemm_plugin" in printed


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


def serve_arguments(place: Path, **flag_to_port: int) -> list[str | Path]:
    free = dict.fromkeys(("--http-port", "--grpc-port", "--metrics-port"), 0)
    ports = dict(choose_endpoints("127.0.0.1", free).flag_to_port)
    ports |= {f"--{name}-port": port for name, port in flag_to_port.items()}
    flags = [part for flag, port in ports.items() for part in (flag, str(port))]
    return ["serve", "--model_repository", place / "models", *flags]


def test_port_in_use(place: Path, fails: Fails, taken_port: int) -> None:
    deploy(DeployRequest(place / "engine", place / "models", "tiny"))
    assert f"--grpc-port {taken_port}: in use" in fails(*serve_arguments(place, grpc=taken_port))


def test_repository_without_engine(place: Path, fails: Fails) -> None:
    (place / "models").mkdir()
    assert "there is no model to serve" in fails(*serve_arguments(place))
    deploy(DeployRequest(place / "engine", place / "models", "tiny"))
    (place / "models" / "tiny" / "1" / "rank0.engine").unlink()
    assert "rank0.engine" in fails(*serve_arguments(place))
