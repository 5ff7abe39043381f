"""Mistakes in the environment."""

from __future__ import annotations

import pytest

from tidemill.base import debug
from tidemill.base.errors import ConfigError


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
