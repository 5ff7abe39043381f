"""Several answers to one prompt: num_return_sequences as requests of the engine.

In: one engine request for each prompt. Out: one for each answer, and where each belongs. The first
answer to a prompt is the one it has alone; the others draw from seeds of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tidemill.base.errors import InvalidRequestError
from tidemill.host.messages import GenerateRequest

MAX_ANSWERS = 4096
SEED_RANGE = 2**64


@dataclass(frozen=True)
class AnswerPlace:
    """Which prompt an answer is for, and which of its answers it is; None where there is one."""

    batch_index: int | None
    sequence_index: int | None

    def outputs(self) -> dict[str, int]:
        """Return what a response says of its place, by the names of the contract."""
        named = {"batch_index": self.batch_index, "sequence_index": self.sequence_index}
        return {name: index for name, index in named.items() if index is not None}


def expand_sequences(
    requests: Sequence[GenerateRequest], counts: Sequence[int | None]
) -> tuple[list[GenerateRequest], list[AnswerPlace]]:
    """Repeat each request as often as it was asked for.

    Raises: InvalidRequestError for a number of answers below 1, or too many of them all.
    """
    check_counts([1 if count is None else count for count in counts])
    expanded, places = [], []
    for row, (request, count) in enumerate(zip(requests, counts, strict=True)):
        if request.beams is not None:  # a search tells its beams in one response
            expanded.append(msgspec.structs.replace(request, n=count or request.n))
            places.append(AnswerPlace(row if len(requests) > 1 else None, None))
            continue
        for sequence in range(count or 1):
            expanded.append(_with_own_seed(request, sequence))
            places.append(
                AnswerPlace(
                    batch_index=row if len(requests) > 1 else None,
                    sequence_index=sequence if (count or 1) > 1 else None,
                )
            )
    return expanded, places


def check_counts(counts: Sequence[int]) -> None:
    """Refuse numbers of answers that no engine can have been asked for in earnest.

    Raises: InvalidRequestError.
    """
    if min(counts, default=1) < 1 or sum(counts) > MAX_ANSWERS:
        raise InvalidRequestError(
            "the number of answers to a request is out of range",
            where="num_return_sequences",
            expected=f"at least 1 a prompt, at most {MAX_ANSWERS} in all",
            got=f"{min(counts)} to {max(counts)} for {len(counts)} prompts",
            hint="ask for fewer answers, or spread them over several requests",
        )


def _with_own_seed(request: GenerateRequest, sequence: int) -> GenerateRequest:
    if sequence == 0:
        return request
    seed = ((request.seed or 0) + sequence) % SEED_RANGE
    return msgspec.structs.replace(request, seed=seed)
