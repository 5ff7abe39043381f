"""A part of the run of 10,000 that `python -m tests.e2e.many_requests 10000` makes."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.many_requests import CACHE_TOKENS, MIXES, build_tiny_engine, run_mixes
from tidemill.runtime.executor.cpu import NativeExecutor

NUM_REQUESTS = 100 * len(MIXES)


def test_requests_in_every_mix_give_their_tokens_alone(tmp_path: Path) -> None:
    engine_dir = build_tiny_engine(tmp_path)
    executor = NativeExecutor.load(engine_dir, kv_cache_tokens=CACHE_TOKENS, num_threads=1)
    outcome = run_mixes(executor, NUM_REQUESTS)
    executor.close()
    assert outcome.num_ended == NUM_REQUESTS
    # Every way was walked: blocks found again, requests paused, guesses kept, requests cancelled.
    assert outcome.num_reused_blocks > NUM_REQUESTS and outcome.num_cancelled > 10
    assert outcome.num_pauses > 0 and outcome.num_accepted > 0
