"""How long running requests wait for their next token while a long prompt enters beside them.

Requests are decoding; a prompt of 2,048 tokens arrives; the gaps between each running request's
tokens are noted until the prompt's own first token, under several bounds on a step (`max_step_ms`,
0: none), which take turns on one engine. Checks that the long prompt's tokens are the same under
every bound. One JSON line for each bound: gaps' median, p99 and worst in ms, what they were just
before, and the time to the long prompt's first token.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line
from bench.parts.sample_engine import build_sample
from tidemill.base.cpus import num_physical_cores
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import Request, TokenUpdate

LONG, NUM_LONG_ANSWER = 1_000_000, 4
STEPS_BEFORE = 12


@dataclass
class Figures:
    """What was seen under one bound, over all rounds. Units: milliseconds."""

    before_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    answers: set[tuple[int, ...]] = field(default_factory=set)


def main() -> None:
    """Take turns, check, print."""
    options = read_options()
    with tempfile.TemporaryDirectory() as scratch:
        engine_dir = options.engine_dir or build_sample(Path(scratch))
        # Room for everybody to the end, with every prompt's blocks fresh.
        room = options.running * 1024 + options.prompt + 1024
        executor = NativeExecutor.load(
            engine_dir, kv_cache_tokens=room, num_threads=options.threads
        )
        bound_to_figures = {bound: Figures() for bound in options.max_step_ms}
        for turn in range(options.rounds + 1):
            for bound, figures in bound_to_figures.items():
                measure(executor, bound, options, Figures() if turn == 0 else figures)
        for bound, figures in bound_to_figures.items():
            report(engine_dir, bound, options, figures)
        answers = set().union(*(figures.answers for figures in bound_to_figures.values()))
        assert len(answers) == 1, f"the long prompt's answer depends on its chunks: {answers}"
        executor.close()


def read_options() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--engine_dir", type=Path, help="default: the sample, built in bfloat16")
    parser.add_argument("--running", type=int, default=8, help="requests that are decoding")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prompt that enters")
    parser.add_argument("--max_step_ms", type=float, nargs="+", default=[0.0, 50.0, 100.0, 200.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=num_physical_cores())
    return parser.parse_args()


def measure(
    executor: NativeExecutor, bound: float, options: argparse.Namespace, figures: Figures
) -> None:
    """Let one long prompt enter among running requests."""
    loop = Loop(executor, RuntimeConfig(enable_block_reuse=False, max_step_ms=bound))
    random = np.random.default_rng(7)
    for number in range(options.running):
        loop.submit(Request(number, tuple(random.integers(100, 49_000, 64).tolist()), 800))
    started: set[int] = set()
    while len(started) < options.running:
        started.update(update.request_id for update in loop.step())
    before = time.perf_counter()
    for _ in range(STEPS_BEFORE):
        loop.step()
    figures.before_ms.append((time.perf_counter() - before) / STEPS_BEFORE * 1e3)
    prompt = tuple(random.integers(100, 49_000, options.prompt).tolist())
    loop.submit(Request(LONG, prompt, NUM_LONG_ANSWER))
    arrived = latest = time.perf_counter()
    answer: list[int] = []
    while not answer:
        updates = loop.step()
        now = time.perf_counter()
        # Every running request is in every step: all of them have waited as long.
        assert len(updates) >= options.running, "a running request was left out"
        figures.gaps_ms.append((now - latest) * 1e3)
        latest = now
        answer += answer_of(updates)
    figures.first_ms.append((latest - arrived) * 1e3)
    while len(answer) < NUM_LONG_ANSWER:
        answer += answer_of(loop.step())
    figures.answers.add(tuple(answer))


def answer_of(updates: Sequence[TokenUpdate]) -> list[int]:
    return [token for each in updates if each.request_id == LONG for token in each.new_tokens]


def report(engine_dir: Path, bound: float, options: argparse.Namespace, figures: Figures) -> None:
    print_line(
        "long_prompt",
        engine=engine_dir.name,
        running=options.running,
        prompt=options.prompt,
        threads=options.threads,
        max_step_ms=bound,
        gap_before_ms=round(statistics.median(figures.before_ms), 1),
        gap_ms={
            "median": round(float(np.median(figures.gaps_ms)), 1),
            "p99": round(float(np.percentile(figures.gaps_ms, 99)), 1),
            "worst": round(max(figures.gaps_ms), 1),
        },
        num_gaps=len(figures.gaps_ms),
        long_prompt_first_token_ms=round(statistics.median(figures.first_ms), 0),
    )


if __name__ == "__main__":
    main()
