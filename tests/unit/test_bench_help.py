"""Every script of bench says what it is when asked, and measures nothing then."""

from __future__ import annotations

import importlib
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
