"""A host's command line: what a client writes is what the host reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.base.cpus import num_physical_cores
from tidemill.host.__main__ import parse_arguments
from tidemill.host.config import HostConfig, SessionConfig
from tidemill.runtime.config import RuntimeConfig

CORES = num_physical_cores()


def parsed(session: SessionConfig) -> SessionConfig:
    command = HostConfig(program=("host",)).command(Path("engine"), session, Path("socket"), 3)
    return parse_arguments(command[1:])[1]


def test_every_setting_arrives() -> None:
    session = SessionConfig(640, CORES + 1, 0.5, True, RuntimeConfig(max_queue_size=7))
    assert parsed(session) == session


@pytest.mark.parametrize(
    ("num_threads", "asked_for", "pins"),
    [(None, None, True), (CORES, None, True), (CORES + 1, None, False), (None, False, False)],
)
def test_threads_that_take_all_cores_stay_on_them_unless_told_otherwise(
    num_threads: int | None, asked_for: bool | None, pins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidemill.host.config.cpu_quota", lambda: None)
    session = parsed(SessionConfig(num_threads=num_threads, pin_threads=asked_for))
    assert session.pin_threads is pins
