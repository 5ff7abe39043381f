"""A machine that only serves: no compiler, no readers of checkpoint formats, in any process.

The packages are made impossible to import for every Python started below, the server's stubs and
the engine host included, and each of those says that it was so. They are served from a directory
with modules of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tests.triton.http_calls import call
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.frontends.triton.endpoints import choose_endpoints

LEFT_OUT = ("llvmlite", "gguf", "safetensors")
PORT_FLAGS = ("--http-port", "--grpc-port", "--metrics-port")
POOR_MODULE = f"""
import os, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {LEFT_OUT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
command = open("/proc/self/cmdline").read().replace(chr(0), " ")
with open(os.path.join(os.path.dirname(__file__), "processes"), "a") as log:
    log.write(command + chr(10))
"""


@pytest.fixture(scope="module")
def engine_dir(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("serve_only")
    convert(ConvertRequest(make_tiny_llama(TinyLlama()), directory / "checkpoint"))
    build(BuildRequest(directory / "checkpoint", directory / "engine", 4, max_seq_len=128))
    return directory / "engine"


@pytest.fixture
def poor(tmp_path: Path) -> Mapping[str, str]:
    """Return the environment of a machine without these packages."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "poor_machine.py").write_text(POOR_MODULE)
    (tmp_path / "site" / "sitecustomize.py").write_text("import poor_machine")
    return {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "site"),
        "XDG_RUNTIME_DIR": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


def tidemill(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tidemill", *arguments]
    return subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("name", LEFT_OUT)
def test_packages_cannot_be_imported_there(name: str, poor: Mapping[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], env=dict(poor), check=False)
    assert done.returncode != 0


def test_engine_runs_and_is_inspected_there(engine_dir: Path, poor: Mapping[str, str]) -> None:
    place = ("--engine_dir", str(engine_dir))
    prompt = ("--input_text", "Hello", "--max_output_len", "5", "--json")
    rich = tidemill(os.environ, "run", *place, *prompt)
    done = tidemill(poor, "run", *place, *prompt)
    assert done.returncode == 0, done.stderr
    (answer,), (expected,) = json.loads(done.stdout), json.loads(rich.stdout)
    assert answer["text"] == expected["text"] and answer["text"]
    assert tidemill(poor, "inspect", *place).returncode == 0


def test_build_there_says_what_to_install(engine_dir: Path, poor: Mapping[str, str]) -> None:
    checkpoint = engine_dir.with_name("checkpoint")
    output = engine_dir.with_name("never")
    flags = ("--checkpoint_dir", str(checkpoint), "--output_dir", str(output))
    done = tidemill(poor, "build", *flags)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "try: pip install" in done.stderr
    assert not output.exists()


def test_engine_is_deployed_and_served_there(
    engine_dir: Path, poor: Mapping[str, str], tmp_path: Path
) -> None:
    repository = tmp_path / "my $(models)"
    deployed = tidemill(
        poor, "deploy", "--engine_dir", str(engine_dir), "--model_repository", str(repository),
        "--name", "tiny",
    )  # fmt: skip
    assert deployed.returncode == 0, deployed.stderr
    # Triton's stub reads neither PYTHONPATH nor sitecustomize: there the model begins with it.
    model = repository / "tiny" / "1" / "model.py"
    start = f"import sys\nsys.path.insert(0, {poor['PYTHONPATH']!r})\nimport poor_machine\n"
    model.write_text(start + model.read_text())
    ports = choose_endpoints("127.0.0.1", dict.fromkeys(PORT_FLAGS, 0)).flag_to_port
    flags = [part for flag, port in ports.items() for part in (flag, str(port))]
    for module in ("json", "numpy", "typing", "msgspec"):  # no process takes them for others
        (tmp_path / f"{module}.py").write_text("raise SystemExit(77)")
    command = [str(Path(sys.executable).with_name("tidemill")), "serve"]
    command += ["--model_repository", repository.name]
    with subprocess.Popen(
        [*command, *flags], cwd=tmp_path, env=dict(poor), stderr=subprocess.PIPE, text=True
    ) as serve:
        assert serve.stderr is not None
        printed = []
        for line in serve.stderr:
            printed.append(line)
            if "metrics http" in line:
                break
        try:
            assert "metrics http" in printed[-1], "".join(printed)
            url = f"http://127.0.0.1:{ports['--http-port']}/v2/models/tiny/generate"
            status, answer = call(url, {"text_input": "Hello", "max_tokens": 5})
            assert status == 200 and answer["text_output"], (answer, printed)
        finally:
            serve.terminate()
            serve.stderr.read()
    processes = (tmp_path / "site" / "processes").read_text()
    assert "tidemill.host" in processes
    assert "triton_python_backend_stub" in processes
