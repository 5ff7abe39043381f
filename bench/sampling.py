"""Times decode steps with and without rules, and what of them is not the native call.

Batches of requests in the middle of their answers, on the sample model: plain ones, ones with
penalties, ones that ask for log-probabilities. Modes take turns, so that all see the same state of
a shared machine. Prints one JSON line for each mode: the step and Python's part of it. Units: ms.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.parts.command_line import parser_of
from bench.parts.figures import print_line, spread
from bench.parts.sample_engine import build_sample
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.logits_rules import LogitsRules
from tidemill.runtime.loop import Loop
from tidemill.runtime.observation import OutputWishes
from tidemill.runtime.request import Request, SamplingParams

PROMPT_TOKENS, WARM_STEPS, STEPS = 32, 4, 24
PENALTIES = LogitsRules(1.1, 0.1, 0.1, no_repeat_ngram_size=4, bad_words=((5, 6), (7,)))
MODE_TO_SETTINGS: dict[str, tuple[SamplingParams, OutputWishes | None]] = {
    "greedy": (SamplingParams(), None),
    "sampling": (SamplingParams(0.8, 50, 0.95), None),
    "greedy, penalties": (SamplingParams(rules=PENALTIES), None),
    "greedy, logprobs=1": (SamplingParams(), OutputWishes(num_logprobs=1)),
}


def time_mode(executor: NativeExecutor, batch: int, mode: str) -> tuple[list[float], list[float]]:
    """Return whole steps and their parts outside of the native call."""
    sampling, wishes = MODE_TO_SETTINGS[mode]
    loop, native_s = Loop(executor), [0.0]
    call = executor.team.step

    def timed_call() -> None:
        start = time.perf_counter()
        call()
        native_s[0] += time.perf_counter() - start

    for number in range(batch):
        prompt = tuple((7 * number + position) % 4000 + 100 for position in range(PROMPT_TOKENS))
        total = WARM_STEPS + STEPS + 8
        loop.submit(Request(number, prompt, total, sampling, wishes=wishes))
    steps_ms, python_ms = [], []
    executor.team.step = timed_call  # type: ignore[method-assign]
    for step in range(WARM_STEPS + STEPS):
        native_s[0], start = 0.0, time.perf_counter()
        loop.step()
        whole = time.perf_counter() - start
        if step >= WARM_STEPS:
            steps_ms.append(whole * 1e3)
            python_ms.append((whole - native_s[0]) * 1e3)
    executor.team.step = call  # type: ignore[method-assign]
    return steps_ms, python_ms


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--engine_dir", type=Path)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 32])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        engine_dir = options.engine_dir or build_sample(Path(scratch))
        executor = NativeExecutor.load(engine_dir, kv_cache_tokens=64 * 128)
        for batch in options.batch:
            for mode in MODE_TO_SETTINGS:
                steps, python = time_mode(executor, batch, mode)
                step_ms, python_ms = spread(steps), spread(python, 4)
                print_line("sampling", batch=batch, mode=mode, step_ms=step_ms, python_ms=python_ms)
        executor.close()


if __name__ == "__main__":
    main()
