"""Times Python's share of a step: all of a step but its native call, at a batch and with a queue.

Checks the answers first (the same tokens with and without a queue), then times decode steps of the
sample model. Two figures: `loop` (plan, fill the inputs, commit) and `session` (detokenising a
stream for each request, too). Give an engine directory to use it. Units: milliseconds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line, spread
from bench.parts.sample_engine import build_sample
from tidemill.device.cpu import Team
from tidemill.host.messages import GenerateRequest
from tidemill.host.session import Session
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import Request
from tidemill.text.tokenizer import Tokenizer

NUM_STEPS = 60
CASES = ((1, 0), (1, 256), (32, 0), (32, 256))
PROMPT_LENGTH = 16
CACHE_TOKENS = 32 * 256


class TimedTeam:
    """A team whose steps' time is kept."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self.step_ms = 0.0

    def step(self) -> None:
        start = time.perf_counter()
        self._team.step()
        self.step_ms = (time.perf_counter() - start) * 1e3

    def close(self) -> None:
        self._team.close()


class Case:
    """Requests that decode, and others that wait for ever behind them."""

    def __init__(self, executor: NativeExecutor, batch: int, queued: int) -> None:
        self.executor, self.batch, self.queued = executor, batch, queued
        team = executor.team
        self.team = team if isinstance(team, TimedTeam) else TimedTeam(team)
        executor.team = self.team  # type: ignore[assignment]

    def prompts(self) -> list[list[int]]:
        return [[5 + i, *range(100, 99 + PROMPT_LENGTH)] for i in range(self.batch)]

    def time_steps(self, step: Callable[[], object]) -> tuple[list[float], list[float]]:
        """Return what Python took of each step, and what the native call took."""
        python_ms, native_ms = [], []
        for _ in range(NUM_STEPS):
            start = time.perf_counter()
            step()
            total_ms = (time.perf_counter() - start) * 1e3
            python_ms.append(total_ms - self.team.step_ms)
            native_ms.append(self.team.step_ms)
        return python_ms, native_ms

    def run_loop(self) -> tuple[list[float], list[float]]:
        loop = Loop(self.executor)
        for number, prompt in enumerate(self.prompts()):
            loop.submit(Request(number, tuple(prompt), 2 * NUM_STEPS))
        # These can never be admitted beside the others: the first of them asks for the rest.
        whole = loop.limits.num_blocks * loop.limits.tokens_per_block
        length = min(whole, loop.limits.max_seq_len)
        for number in range(self.queued):
            loop.submit(Request(1000 + number, (7, number), length - 2))
        loop.step()
        assert loop.stats().num_generation_requests == 0
        times = self.time_steps(loop.step)
        stats = loop.stats()
        assert stats.num_generation_requests == self.batch, stats
        assert stats.num_queued_requests == self.queued, stats
        return times

    def run_session(self, tokenizer: Tokenizer) -> tuple[list[float], list[float]]:
        session = Session(self.executor, tokenizer)
        for number, prompt in enumerate(self.prompts()):
            session.submit(
                GenerateRequest(
                    request_id=str(number),
                    prompt_tokens=prompt,
                    max_tokens=2 * NUM_STEPS,
                    end_id=-1,
                    streaming=True,
                )
            )
        session.step()
        return self.time_steps(session.step)


def measure(engine_dir: Path) -> None:
    """Print one line for each batch, with and without a queue."""
    tokenizer = Tokenizer.from_directory(engine_dir)
    for batch, queued in CASES:
        # So small that the running requests take all of it, and the queue waits.
        tokens = batch * (PROMPT_LENGTH + 2 * NUM_STEPS + 32)
        executor = NativeExecutor.load(engine_dir, kv_cache_tokens=tokens)
        case = Case(executor, batch, queued)
        case.run_loop()
        python_ms, native_ms = case.run_loop()
        session_ms, _ = case.run_session(tokenizer)
        executor.close()
        share = 100 * sum(python_ms) / (sum(python_ms) + sum(native_ms))
        print_line(
            "scheduler_overhead",
            batch=batch,
            queued=queued,
            python_ms=spread(python_ms),
            native_ms=spread(native_ms),
            python_percent=round(share, 2),
            session_ms=spread(session_ms),
        )


def main() -> None:
    """Measure the engine that is given, or the sample model's."""
    parser = parser_of(__doc__)
    parser.add_argument("engine_dir", type=Path, nargs="?", help="default: the sample, built anew")
    options = parser.parse_args()
    if options.engine_dir is not None:
        measure(options.engine_dir)
        return
    with tempfile.TemporaryDirectory() as scratch:
        measure(build_sample(Path(scratch)))


if __name__ == "__main__":
    main()
