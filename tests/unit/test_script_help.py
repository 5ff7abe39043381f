"""Scripts say what they are when asked, and measure nothing then; the suite leaves no room out."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(f"bench.{path.stem}" for path in (ROOT / "bench").glob("*.py"))
PARTS = ["bench.parts.llama_directory", *(f"bench.peers.{name}" for name in ("models", "__main__"))]


@pytest.mark.parametrize("name", [*SCRIPTS, *PARTS, "bench.peers.environments"])
def test_help_is_the_scripts_own_docstring(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert module.__doc__ and module.__doc__.strip() in capsys.readouterr().out


def test_soak_finds_the_environment_that_it_needs() -> None:
    outside = {"PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin"}
    command = [str(ROOT / "scripts" / "soak"), "--help"]
    done = subprocess.run(command, env=outside, capture_output=True, text=True)
    assert done.returncode == 0 and "--engine_dir" in done.stdout, done.stderr


def test_the_default_suite_runs_every_room() -> None:
    tests, script = ROOT / "tests", (ROOT / "scripts" / "test").read_text()
    rooms = {path.relative_to(tests).parts[0] for path in tests.rglob("test_*.py")}
    (named,) = re.findall(r"^rooms=\((.*)\)$", script, re.MULTILINE)
    assert sorted(named.split()) == sorted(rooms)
