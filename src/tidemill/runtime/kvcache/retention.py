"""How long a request wants its blocks kept once nobody uses them.

In come ranges of tokens with priorities and durations; out comes the wish for one block. Knows
nothing of blocks' state: `EvictionOrder` acts on the wishes.

Source: TensorRT-LLM's KvCacheRetentionConfig.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_PRIORITY, MAX_PRIORITY = 0, 100
DEFAULT_PRIORITY = 35


@dataclass(frozen=True)
class Retention:
    """One wish: lower priorities are evicted first; after `duration_ms` it is the default's."""

    priority: int = DEFAULT_PRIORITY
    duration_ms: float | None = None


DEFAULT_RETENTION = Retention()


@dataclass(frozen=True)
class TokenRangeRetention:
    """A wish for prompt tokens [token_start, token_end); `token_end` None means to the end."""

    token_start: int
    token_end: int | None = None
    priority: int = DEFAULT_PRIORITY
    duration_ms: float | None = None


@dataclass(frozen=True)
class KvCacheRetention:
    """The wishes of one request: for ranges of its prompt, and for what it generates."""

    ranges: tuple[TokenRangeRetention, ...] = ()
    decode_priority: int = DEFAULT_PRIORITY
    decode_duration_ms: float | None = None

    def of_block(self, start: int, end: int, num_prompt: int) -> Retention:
        """Return the wish for the block of positions [start, end).

        Where several ranges touch a block, the highest priority counts.
        """
        wishes = [
            Retention(each.priority, each.duration_ms)
            for each in self.ranges
            if each.token_start < min(end, num_prompt)
            and (each.token_end is None or each.token_end > start)
        ]
        if end > num_prompt:
            wishes.append(Retention(self.decode_priority, self.decode_duration_ms))
        return max(wishes, key=lambda wish: wish.priority, default=DEFAULT_RETENTION)

    def faults(self) -> list[str]:
        """List what is wrong with the values."""
        priorities = [each.priority for each in self.ranges] + [self.decode_priority]
        faults = [
            f"require {MIN_PRIORITY} <= retention priority <= {MAX_PRIORITY}, got {priority}"
            for priority in priorities
            if not MIN_PRIORITY <= priority <= MAX_PRIORITY
        ]
        for each in self.ranges:
            if not 0 <= each.token_start < (each.token_end or each.token_start + 1):
                faults.append(
                    "require 0 <= token_start < token_end in a retention range, got"
                    f" {each.token_start} and {each.token_end}"
                )
        return faults
