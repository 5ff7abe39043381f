"""The demo verb, as `make demo ONCE=1` runs it: the sample from its file to a streamed answer."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.frontends.triton.endpoints import choose_endpoints

STEPS = ("sample", "convert", "build", "deploy", "serve", "answer")


@pytest.mark.slow  # converts and builds the sample, starts and ends a real server
def test_demo_answers_times_every_step_and_ends(sample_gguf: Path, tmp_path: Path) -> None:
    port = choose_endpoints("127.0.0.1", {"--http-port": 0}).flag_to_port["--http-port"]
    command = [sys.executable, "-m", "tidemill", "demo", "--once", "--http_port", str(port)]
    done = subprocess.run(
        [*command, "--work_dir", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    assert "force" in done.stdout and len(done.stdout.split()) > 20
    for step in STEPS:
        assert re.search(rf"^{step} +[0-9.]+ s$", done.stderr, re.MULTILINE), (step, done.stderr)
    assert f"try: curl -N localhost:{port}/v2/models/smollm2/generate_stream" in done.stderr
