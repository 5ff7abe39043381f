"""Mistakes in the environment, and the four parts that every error for people must have."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tidemill
from tidemill.base import debug, errors
from tidemill.base.errors import BuildError, ConfigError, InvalidRequestError, SessionError

NEEDS_ALL_PARTS = BuildError | SessionError | InvalidRequestError
PARTS = {"where", "expected", "got", "hint"}


@pytest.mark.parametrize("text", ["6", "-1", "yes", "1.0"])
def test_debug_level_off_the_ladder(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(debug.LEVEL_VARIABLE, text)
    with pytest.raises(ConfigError, match="TIDEMILL_DEBUG") as caught:
        debug.level()
    assert caught.value.got == repr(text)


def test_debug_switch_neither_on_nor_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(debug.CHECK_STATE.variable, "maybe")
    with pytest.raises(ConfigError, match="neither on nor off"):
        debug.is_on(debug.CHECK_STATE)


def _raised_without(source: Path) -> list[str]:
    """List where an error that needs all four parts is made without one of them."""
    found = []
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        family = getattr(errors, node.func.id, None)
        if isinstance(family, type) and issubclass(family, NEEDS_ALL_PARTS):
            missing = PARTS - {keyword.arg for keyword in node.keywords}
            if missing:
                found.append(f"{source.name}:{node.lineno} lacks {', '.join(sorted(missing))}")
    return found


def test_every_error_says_where_expected_got_and_what_to_try() -> None:
    sources = sorted(Path(tidemill.__file__).parent.rglob("*.py"))
    assert len(sources) > 100
    assert [fault for source in sources for fault in _raised_without(source)] == []
