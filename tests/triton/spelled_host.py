"""Reaches the host of the engine that spells, from Triton's stub and from tests alike."""

from __future__ import annotations

import sys
from pathlib import Path

from tidemill.host.client import HostClient
from tidemill.host.config import HostConfig, SessionConfig


def connect_spelled(engine_dir: Path, session: SessionConfig | None = None) -> HostClient:
    """Connect to the engine's host, starting it when there is none."""
    python = str(Path(sys.prefix) / "bin" / "python3")
    program = (python, "-m", "tests.unit.host.fake_engine")
    return HostClient.connect_or_start(engine_dir, session, HostConfig(program=program))
