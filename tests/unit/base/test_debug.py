"""The debug ladder: what each setting of the environment shows."""

from __future__ import annotations

import pytest

from tidemill.base import debug


def test_ladder_has_one_rung_for_each_level_in_order() -> None:
    assert [rung.level for rung in debug.LADDER] == list(debug.Level)


def test_unset_variable_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(debug.LEVEL_VARIABLE, raising=False)
    debug.say(debug.Level.DECISIONS, "room", "text")
    assert capsys.readouterr().err == ""


def test_level_shows_lower_levels_and_hides_higher_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(debug.LEVEL_VARIABLE, "2")
    debug.say(debug.Level.DECISIONS, "room", "lower")
    debug.say(debug.Level.PLANS, "room", "higher")
    debug.say(debug.Level.TIMINGS, "room", "equal")
    assert capsys.readouterr().err == "tidemill room: lower\ntidemill room: equal\n"


def test_switch_is_on_only_when_set_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(debug.CHECK_STATE.variable, "0")
    assert not debug.is_on(debug.CHECK_STATE)
    monkeypatch.setenv(debug.CHECK_STATE.variable, "1")
    assert debug.is_on(debug.CHECK_STATE)
