"""The demo verb, as `make demo ONCE=1` runs it: the sample from its file to a streamed answer."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.frontends.triton.endpoints import choose_endpoints

# Converts and builds the sample, starts and ends a real server.
pytestmark = pytest.mark.slow

STEPS = ("sample", "convert", "build", "deploy", "serve", "answer")


def demo_command(work_dir: Path) -> tuple[list[str], int]:
    """Return the demo's command line and the port that it is to serve on."""
    port = choose_endpoints("127.0.0.1", {"--http-port": 0}).flag_to_port["--http-port"]
    tidemill = str(Path(sys.executable).with_name("tidemill"))
    return [tidemill, "demo", "--http_port", str(port), "--work_dir", str(work_dir)], port


def test_demo_answers_times_every_step_and_ends(sample_gguf: Path, tmp_path: Path) -> None:
    command, port = demo_command(Path("my demo"))
    (tmp_path / "json.py").write_text("raise SystemExit(77)")  # no process takes it for another
    done = subprocess.run(
        [*command, "--once"], cwd=tmp_path, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stderr
    assert "force" in done.stdout and len(done.stdout.split()) > 20
    for step in STEPS:
        assert re.search(rf"^{step} +[0-9.]+ s$", done.stderr, re.MULTILINE), (step, done.stderr)
    assert f"try: curl -N localhost:{port}/v2/models/smollm2/generate_stream" in done.stderr


def test_a_demo_that_is_told_to_end_takes_its_server_along(
    sample_gguf: Path, tmp_path: Path
) -> None:
    command, port = demo_command(tmp_path / "demo")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None
        said = []
        for line in demo.stderr:
            said.append(line)
            if "serving until Ctrl-C" in line:
                demo.send_signal(signal.SIGTERM)
        assert demo.wait(timeout=60) != 0, said
    assert any("serving until Ctrl-C" in line for line in said), "".join(said)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
