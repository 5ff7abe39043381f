"""What is asked of every engine, and what figure comes of it: tokens per second.

Prompts are random token ids, fresh each time, and answers have a set length. A decoding rate is
that of the tokens after the first: the same request with one new token is timed beside it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TRACE = Path(__file__).resolve().parents[1] / "traces" / "mixed_32.json"
FIRST_ID, END_ID = 100, 49_000

Timed = Callable[[list[list[int]], list[int]], float]
"""Seconds that an engine takes for prompts and lengths of answers."""


@dataclass(frozen=True)
class Case:
    """One kind of work; `measure` returns tokens per second."""

    name: str
    measure: Callable[[Timed, random.Random], float]


def prefill(length: int) -> Case:
    """One fresh prompt."""

    def measure(timed: Timed, chance: random.Random) -> float:
        return length / timed(_prompts(chance, 1, length), [1])

    return Case(f"prefill {length}", measure)


def decode(context: int, num_new: int) -> Case:
    """One request after a prompt of `context` tokens."""

    def measure(timed: Timed, chance: random.Random) -> float:
        first_s = timed(_prompts(chance, 1, context), [1])
        return num_new / (timed(_prompts(chance, 1, context), [num_new + 1]) - first_s)

    return Case(f"decode @{context}", measure)


def batch(size: int, num_new: int) -> Case:
    """Many requests of one shape at once, after prompts of 128 tokens."""

    def measure(timed: Timed, chance: random.Random) -> float:
        first_s = timed(_prompts(chance, size, 128), [1] * size)
        all_s = timed(_prompts(chance, size, 128), [num_new] * size)
        return size * (num_new - 1) / (all_s - first_s)

    return Case(f"batch {size}", measure)


def trace(path: Path = TRACE) -> Case:
    """The mixed requests of a file, all at once; output tokens over the whole time."""
    requests = json.loads(path.read_text("utf-8"))["requests"]
    prompts: list[list[int]] = [request["prompt_ids"] for request in requests]
    lengths: list[int] = [request["output_len"] for request in requests]

    def measure(timed: Timed, chance: random.Random) -> float:
        return sum(lengths) / timed(prompts, lengths)

    return Case("trace", measure)


def all_cases(num_new: int) -> dict[str, Case]:
    """Return every case by name, in the table's order."""
    cases = [
        prefill(512),
        prefill(2048),
        decode(128, num_new),
        decode(1024, num_new),
        batch(8, num_new),
        batch(32, num_new),
        trace(),
    ]
    return {case.name: case for case in cases}


def _prompts(chance: random.Random, count: int, length: int) -> list[list[int]]:
    return [[chance.randrange(FIRST_ID, END_ID) for _ in range(length)] for _ in range(count)]
