"""The README's commands exist: every verb and every flag that it shows is in the help."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tidemill.frontends.cli.main import app
from tidemill.frontends.cli.shell import run_app

README = Path(__file__).resolve().parents[2] / "README.md"
COMMANDS = re.findall(r"^    tidemill (\w+) (.*)$", README.read_text("utf-8"), re.MULTILINE)


def test_readme_shows_commands() -> None:
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize(("verb", "rest"), COMMANDS)
def test_flags_in_the_readme_are_in_the_help(
    verb: str, rest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(app, [verb, "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in re.findall(r"--\w+", rest):
        assert flag in shown
