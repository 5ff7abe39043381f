"""What a benchmark asks: prompts in tokens, lengths of answers, moments of arrival.

In: a file in one of two formats, or sizes to draw from. JSON lines as TensorRT-LLM's benchmark
takes them, `{"task_id", "prompt" or "input_ids", "output_tokens"}`; or one JSON object with
"requests", each `{"prompt_len" or "prompt_ids", "output_len", "arrival_ms"}`, and a "seed" for the
prompts of which only the length is given. Arrivals left out are at once. Knows of engines only
their limits.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.base.errors import ConfigError
from tidemill.runtime.step import EngineLimits
from tidemill.runtime.validate_request import most_tokens

Encode = Callable[[str], list[int]]

_DEFAULT_SEED = 1234
# The first ids are special in most vocabularies.
_FIRST_ORDINARY_ID = 3


@dataclass(frozen=True)
class Job:
    """One request of a benchmark. Units: seconds since the start, tokens."""

    prompt_tokens: list[int]
    num_output_tokens: int
    arrival_s: float = 0.0


def draw_jobs(num_jobs: int, lengths: tuple[int, int], vocab_size: int, seed: int) -> list[Job]:
    """Make requests of equal lengths (prompt, answer) from random tokens."""
    chance = random.Random(seed)
    return [Job(_draw(chance, lengths[0], vocab_size), lengths[1]) for _ in range(num_jobs)]


def read_jobs(path: Path, vocab_size: int, encode: Encode) -> list[Job]:
    """Read a file of requests, in order of arrival.

    Raises: ConfigError when it is missing or in neither format.
    """
    try:
        text = path.read_text("utf-8")
        rows, seed = _rows(text)
        chance = random.Random(seed)
        jobs = [_job(row, chance, vocab_size, encode) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if not jobs:
        raise _unreadable(path, "no request")
    return sorted(jobs, key=lambda job: job.arrival_s)


def check_jobs(jobs: list[Job], limits: EngineLimits) -> None:
    """Refuse requests that the engine can never serve, all at once.

    Raises: ConfigError.
    """
    faults, most = [], most_tokens(limits)
    for number, job in enumerate(jobs):
        num_prompt, total = len(job.prompt_tokens), len(job.prompt_tokens) + job.num_output_tokens
        if not 0 < num_prompt <= limits.max_input_len or total > most:
            faults.append(f"request {number}: {num_prompt} + {job.num_output_tokens} tokens")
        elif max(job.prompt_tokens) >= limits.vocab_size or min(job.prompt_tokens) < 0:
            faults.append(f"request {number}: a token outside of the vocabulary")
    if faults:
        raise ConfigError(
            "requests of the benchmark do not fit the engine",
            where="bench",
            expected=f"prompts of 1 to {limits.max_input_len} tokens below {limits.vocab_size}, "
            f"with their answers at most {most}",
            got="; ".join(faults[:5]) + (f"; {len(faults) - 5} more" if len(faults) > 5 else ""),
            hint="shorter requests, a larger --kv_cache_tokens, or build with a larger limit",
        )


def _rows(text: str) -> tuple[list[dict[str, Any]], int]:
    try:
        whole = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line.strip()], _DEFAULT_SEED
    if "requests" not in whole:
        return [whole], _DEFAULT_SEED
    return whole["requests"], int(whole.get("seed", _DEFAULT_SEED))


def _job(row: dict[str, Any], chance: random.Random, vocab_size: int, encode: Encode) -> Job:
    tokens = row.get("input_ids", row.get("prompt_ids"))
    if tokens is None and "prompt_len" in row:
        tokens = _draw(chance, int(row["prompt_len"]), vocab_size)
    elif tokens is None:
        tokens = encode(row["prompt"])
    length = row["output_len"] if "output_len" in row else row["output_tokens"]
    arrival_s = float(row.get("arrival_ms", 0.0)) / 1e3
    if int(length) < 1 or arrival_s < 0:
        raise ValueError(f"output length {length}, arrival after {arrival_s} s")
    return Job([int(token) for token in tokens], int(length), arrival_s)


def _draw(chance: random.Random, length: int, vocab_size: int) -> list[int]:
    first = min(_FIRST_ORDINARY_ID, vocab_size - 1)
    return [chance.randrange(first, vocab_size) for _ in range(length)]


def _unreadable(path: Path, got: str) -> ConfigError:
    return ConfigError(
        "the benchmark's requests cannot be read",
        where=str(path),
        expected='JSON lines of {"input_ids", "output_tokens"}, or {"requests": [...]}',
        got=got,
        hint="bench/traces/small.json is an example; docs/CLI.md describes both formats",
    )
