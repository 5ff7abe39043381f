"""Half a minute of the soak that scripts/soak runs for as long as one likes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.triton.serve_process import serving
from tests.triton.soak import Soak, SoakPlan
from tests.triton.spelled_repository import (
    STREAMING,
    UNARY,
    deploy_spelled,
    write_spelled_engine,
)
from tidemill.frontends.triton.shared_memory import SHM_DIR

SYLLABLES = ("ti", "de", "mi", "ll", " ", "\u00e9", "\u20ac", "\U0001f30a", "a\u0301", "\u6f6e")


def spelled_case(rng: random.Random) -> tuple[str, int, str]:
    """Return a prompt whose answer is its own: one that is lost or mixed up shows."""
    answer = "".join(rng.choice(SYLLABLES) for _ in range(rng.randrange(1, 24)))
    return f"{rng.random()} >{answer}", 200, answer


@pytest.mark.slow  # half a minute of load, and restarts of a real server
def test_load_with_kills_loses_and_mixes_nothing(tmp_path: Path) -> None:
    deploy_spelled(write_spelled_engine(tmp_path / "engine"), tmp_path / "models")
    plan = SoakPlan(STREAMING, UNARY, spelled_case, duration_s=24.0, kill_period_s=4.0)
    with serving(tmp_path / "models", "--probe_period", "2") as serve:
        report = Soak(serve, plan).run()
        assert serve.stop() == 0
    print(report)
    assert not report.violations, report
    assert report.counts["whole ok"] > 10 and report.counts["stream ok"] > 10, report
    assert len(report.back_after_s) >= 2
    assert not list(SHM_DIR.glob(f"tidemill_{serve.process.pid}_*"))
