"""Targets: a host is given one only if it has all that its code may use."""

from __future__ import annotations

import platform

import pytest

from tidemill.base import target
from tidemill.base.target import X86_64_V3, host_targets


def test_a_host_without_lzcnt_is_no_x86_64_v3(monkeypatch: pytest.MonkeyPatch) -> None:
    # Linux calls it abm; without it the instruction runs as another one, silently.
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(target, "host_features", lambda: X86_64_V3.required)
    assert host_targets() == (X86_64_V3,)
    monkeypatch.setattr(target, "host_features", lambda: X86_64_V3.required - {"abm"})
    assert host_targets() == ()
