"""The check before steps are timed: requests in a batch get the tokens that they get alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import Request

PROMPT_TOKENS, ANSWER_TOKENS = 48, 12


def check_batch_answers(engine_dir: Path, batch: int, num_threads: int) -> None:
    """Compare a batch's tokens with those of some of its requests alone."""
    room = batch * (PROMPT_TOKENS + ANSWER_TOKENS + 64)
    executor = NativeExecutor.load(engine_dir, kv_cache_tokens=room, num_threads=num_threads)
    together = answers(executor, range(batch))
    for request in {0, batch // 2, batch - 1}:
        alone = answers(executor, [request])
        assert alone[request] == together[request], f"request {request} differs in a batch"
    executor.close()


def answers(executor: NativeExecutor, requests: Sequence[int]) -> dict[int, list[int]]:
    """Return each request's tokens, on a cache that nobody has used."""
    loop = Loop(executor)
    for request in requests:
        loop.submit(Request(request, prompt(request), ANSWER_TOKENS))
    tokens: dict[int, list[int]] = {request: [] for request in requests}
    while loop.has_work:
        for update in loop.step():
            tokens[update.request_id] += update.new_tokens
    return tokens


def prompt(seed: int) -> tuple[int, ...]:
    """Return tokens of no meaning, different for each seed."""
    return tuple((7919 * (seed + 1) + 104729 * at) % 40_000 + 100 for at in range(PROMPT_TOKENS))
