"""How streams' news are joined: nothing lost, first and last at once, few streams untouched."""

from __future__ import annotations

import random
import time

import pytest

from tidemill.base.errors import HostError
from tidemill.frontends.triton import pacing
from tidemill.frontends.triton.pacing import MAX_UNPACED_STREAMS, PacedNews, response_gap_s
from tidemill.host.messages import Update


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def news(index: int, finish: str | None = None) -> Update:
    return Update("r", [index], f"<{index}>", finish, 3, index + 1)


def paced_by(gap_s: float) -> PacedNews:
    return PacedNews(lambda: gap_s)


def test_few_streams_or_many_processors_are_never_paced() -> None:
    assert response_gap_s(MAX_UNPACED_STREAMS, 2) == 0.0
    assert response_gap_s(32, 2) == pytest.approx(0.08)
    assert response_gap_s(32, 64) == pytest.approx(0.0025)


@pytest.mark.parametrize(("quota", "cpus"), [(1.5, 1.5), (64.0, 8), (None, 8)])
def test_a_quota_counts_as_the_processors_that_it_pays_for(
    quota: float | None, cpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "allowed_cpus", lambda: set(range(8)))
    monkeypatch.setattr(pacing, "cpu_quota", lambda: quota)
    assert pacing.available_cpus() == cpus


def test_random_steps_lose_no_token_and_no_order(clock: list[float]) -> None:
    seed = 20261124
    print("seed", seed)
    rng = random.Random(seed)
    for gap_s in (0.0, 0.01, 0.08, 10.0):
        paced, given = paced_by(gap_s), list[Update | None]()
        num_tokens = rng.choice([1, 2, 31, 97])
        for index in range(num_tokens):
            clock[0] += rng.random() * 0.05
            given.append(paced.take(news(index, "length" if index == num_tokens - 1 else None)))
        out = [update for update in given if update is not None]
        assert [token for update in out for token in update.token_ids] == list(range(num_tokens))
        assert "".join(update.text for update in out) == "".join(
            f"<{index}>" for index in range(num_tokens)
        )
        assert given[0] is not None and given[-1] is not None
        assert out[-1].is_final and out[-1].num_output_tokens == num_tokens
        if gap_s == 0.0:
            assert len(out) == num_tokens
        if gap_s == 10.0:
            assert len(out) == min(num_tokens, 2)


def test_error_goes_out_at_once_with_what_was_held(clock: list[float]) -> None:
    paced = PacedNews(lambda: 10.0)
    assert paced.take(news(0)) is not None and paced.take(news(1)) is None
    failed = paced.take(Update.failed("r", HostError("gone")))
    assert failed is not None and failed.error is not None
