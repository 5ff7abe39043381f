"""Fixtures of the host's tests: a fake engine's directory and where sockets go."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.host.fake_engine import write_tokenizer


@pytest.fixture
def engine_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "engine"
    directory.mkdir()
    write_tokenizer(directory)
    return directory


@pytest.fixture
def socket_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the hosts' sockets where this test alone sees them."""
    runtime_dir = tmp_path / "run"
    runtime_dir.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_dir))
    return runtime_dir / "tidemill"
