"""The host tier of a real engine: what was evicted comes back, and answers do not change."""

from __future__ import annotations

import random
from pathlib import Path

from tests.e2e.many_requests import build_tiny_engine
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.executor.cache_size import CacheMemory
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import Request, SamplingParams


def run(loop: Loop, request: Request) -> list[int]:
    loop.submit(request)
    tokens: list[int] = []
    while loop.has_work:
        for update in loop.step():
            tokens += update.new_tokens
        loop.check()
    return tokens


def test_evicted_prompts_come_back_from_the_host_and_answers_stay(tmp_path: Path) -> None:
    engine_dir = build_tiny_engine(tmp_path)
    answers: dict[int, list[list[int]]] = {}
    for host_bytes in (0, 1 << 20):
        executor = NativeExecutor.load(
            engine_dir,
            kv_cache_tokens=128,
            cache_memory=CacheMemory(host_bytes=host_bytes),
            num_threads=1,
        )
        loop = Loop(executor, RuntimeConfig())
        chance = random.Random(4)
        vocab_size, unit = executor.limits.vocab_size, executor.limits.tokens_per_block
        prompts = [tuple(chance.randrange(2, vocab_size) for _ in range(60)) for _ in range(5)]
        # Each prompt comes again, whole and with another end, after four others have evicted it.
        turns = [*prompts, *prompts, *((*each[:50], 7, 8, 9) for each in prompts)]
        sampling = SamplingParams(temperature=0.8, top_k=0, seed=11)
        answers[host_bytes] = [
            run(loop, Request(index, each, 20, sampling)) for index, each in enumerate(turns)
        ]
        host = loop.iterations_since(0)[-1].cache.host
        assert (host.num_onboarded >= 2 * 5 * (50 // unit)) == bool(host_bytes)
        executor.close()
    assert answers[0] == answers[1 << 20]
