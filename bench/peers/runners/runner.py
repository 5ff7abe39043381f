"""The process around one engine: JSON lines in on stdin, JSON lines out on what was stdout.

    {"do": "load", "model": PATH, "threads": 2, "max_requests": 32, "max_tokens": 1024}
        -> {"import_s", "load_s", "version"}
    {"do": "generate", "prompts": [[1, 2]], "lengths": [16]}
        -> {"seconds", "num_tokens", "first": tokens of the first answer}

All prompts of a `generate` come at once, and `seconds` ends with the last token of the last answer.
Runs on each peer's own Python: standard library only, and nothing of the house.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any, NoReturn, Protocol

_PR_SET_PDEATHSIG = 1


class Engine(Protocol):
    """What a runner gives: greedy answers of exactly these lengths, end of sequence ignored."""

    def load(self, model: str, threads: int, max_requests: int, max_tokens: int) -> None:
        """Load a model for so many requests at once, of so many tokens each."""
        ...

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        """Answer all prompts; returns the tokens of each."""
        ...

    def version(self) -> str:
        """Say which release this is."""
        ...


def serve(make: Any) -> NoReturn:
    """Answer until stdin ends; `make` imports the engine's package and returns an `Engine`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Libraries print to stdout what they like: answers go where they cannot.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine: Engine | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.perf_counter()
        if asked.pop("do") == "load":
            engine = make()
            imported = time.perf_counter()
            engine.load(**asked)
            said: dict[str, object] = {
                "import_s": imported - start,
                "load_s": time.perf_counter() - imported,
                "version": engine.version(),
            }
        else:
            assert engine is not None, "load first"
            tokens = engine.generate(asked["prompts"], asked["lengths"])
            seconds = time.perf_counter() - start
            counts = [len(each) for each in tokens]
            assert counts == asked["lengths"], f"answers of {counts} tokens"
            said = {"seconds": seconds, "num_tokens": sum(counts), "first": tokens[0]}
        print(json.dumps(said), file=answers, flush=True)
    os._exit(0)
