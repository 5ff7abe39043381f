"""Reads how long a request wants its blocks of the KV cache kept.

In: the `retention_*` tensors. Out: for each prompt what the runtime's cache goes by. As in
TensorRT-LLM an end of -1 means the prompt's end, a duration of -1 no expiry.
"""

from __future__ import annotations

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.request_inputs import RequestInputs
from tidemill.runtime.kvcache.retention import (
    DEFAULT_PRIORITY,
    KvCacheRetention,
    TokenRangeRetention,
)

STARTS = "retention_token_range_starts"
ENDS = "retention_token_range_ends"
PRIORITIES = "retention_token_range_priorities"
DURATIONS = "retention_token_range_durations_ms"
DECODE_PRIORITY = "retention_decode_priority"
DECODE_DURATION = "retention_decode_duration_ms"
NONE = -1


def read_retention(inputs: RequestInputs) -> list[KvCacheRetention | None]:
    """Return the wishes of each row; None where it has none.

    Raises: InvalidRequestError when the ranges' tensors differ in length.
    """
    columns = zip(
        inputs.integer_lists(STARTS),
        inputs.integer_lists(ENDS),
        inputs.integer_lists(PRIORITIES),
        inputs.integer_lists(DURATIONS),
        inputs.integers(DECODE_PRIORITY),
        inputs.integers(DECODE_DURATION),
        strict=True,
    )
    rows: list[KvCacheRetention | None] = []
    for starts, ends, priorities, durations, priority, duration in columns:
        ranges = _ranges(starts, ends, priorities, durations)
        if not ranges and priority is None and duration is None:
            rows.append(None)
            continue
        decode_priority = DEFAULT_PRIORITY if priority is None else priority
        rows.append(KvCacheRetention(ranges, decode_priority, _duration(duration)))
    return rows


def _ranges(
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    priorities: tuple[int, ...],
    durations: tuple[int, ...],
) -> tuple[TokenRangeRetention, ...]:
    durations = durations or (NONE,) * len(starts)
    for name, values in ((ENDS, ends), (PRIORITIES, priorities), (DURATIONS, durations)):
        if len(values) != len(starts):
            raise InvalidRequestError(
                # The words of TensorRT-LLM's backend.
                f"{name} must be provided, and have the same length as {STARTS}",
                where=name,
                expected=f"{len(starts)} elements",
                got=str(len(values)),
                hint=f"send one element for each of {STARTS}",
            )
    return tuple(
        TokenRangeRetention(start, None if end == NONE else end, priority, _duration(duration))
        for start, end, priority, duration in zip(starts, ends, priorities, durations, strict=True)
    )


def _duration(duration_ms: int | None) -> float | None:
    return None if duration_ms in (None, NONE) else float(duration_ms)
