"""Fixtures of the host's tests: the directory of a fake engine."""

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
