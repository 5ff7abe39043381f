"""What one model's requests took: times and lengths, kept until the metrics thread takes them.

In: the start of each engine request and every update of it, on the threads that carry them. Out: a
`Harvest` since the one before. Costs about a microsecond for each token. Knows nothing of Triton.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tidemill.host.messages import Update

# Of a token: from a small model's step on a good machine to a stall that everybody notices.
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
REQUEST_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class BucketCounts:
    """A histogram's counts: of the values up to each bound, those of the bucket before included."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Count a value that occurred so many times."""
        self._counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def cumulative(self) -> list[int]:
        """Return the counts up to each bound, and then of all values."""
        total = 0
        return [total := total + count for count in self._counts]


@dataclass
class Harvest:
    """What happened since the harvest before. Units: seconds and tokens.

    `reason_to_requests` counts requests by finish reason, "error" for those that failed.
    """

    first_token_s: list[float] = field(default_factory=list)
    duration_s: list[float] = field(default_factory=list)
    input_tokens: list[int] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)
    inter_token: BucketCounts = field(default_factory=lambda: BucketCounts(TOKEN_SECONDS))
    reason_to_requests: Counter[str] = field(default_factory=Counter)


class Traffic:
    """The requests of one model. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._harvest = Harvest()
        self.num_in_flight = 0
        self.has_started = threading.Event()

    def begin(self) -> RequestClock:
        """Start the clock of an engine request."""
        with self._lock:
            self.num_in_flight += 1
        self.has_started.set()
        return RequestClock(self)

    def harvest(self) -> Harvest:
        """Take what has gathered."""
        with self._lock:
            taken, self._harvest = self._harvest, Harvest()
            return taken

    def hear_tokens(self, gap_s: float, num_tokens: int) -> None:
        """Count tokens that came after a gap: each of them took its share of it."""
        with self._lock:
            self._harvest.inter_token.add(gap_s / num_tokens, num_tokens)

    def hear_first(self, delay_s: float) -> None:
        with self._lock:
            self._harvest.first_token_s.append(delay_s)

    def hear_end(self, duration_s: float, update: Update, num_output_tokens: int) -> None:
        with self._lock:
            self.num_in_flight -= 1
            harvest = self._harvest
            harvest.reason_to_requests[update.finish_reason or "error"] += 1
            if update.error is None:
                harvest.duration_s.append(duration_s)
                harvest.input_tokens.append(update.num_input_tokens)
                harvest.output_tokens.append(num_output_tokens)


class RequestClock:
    """The times of one engine request. Its updates come one after another.

    A request that does not stream hears of its tokens only at its end: it then counts in no
    histogram of the first token and of the gaps. Of several answers to one request the first is
    timed, and the tokens of all are counted.
    """

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._start = time.perf_counter()
        self._latest: float | None = None
        self._num_output_tokens = 0
        self._has_ended = False

    def hear(self, update: Update) -> None:
        """Take note of an update; nothing counts after the last."""
        if self._has_ended:
            return
        now = time.perf_counter()
        if update.finish_reason is not None:
            self._num_output_tokens += update.num_output_tokens
        is_streamed = self._latest is not None or not update.is_final
        if update.token_ids and update.index == 0 and is_streamed:
            self._hear_tokens(now, len(update.token_ids))
        if update.is_final:
            self._has_ended = True
            self._traffic.hear_end(now - self._start, update, self._num_output_tokens)

    def _hear_tokens(self, now: float, num_tokens: int) -> None:
        if self._latest is None:
            self._traffic.hear_first(now - self._start)
        else:
            self._traffic.hear_tokens(now - self._latest, num_tokens)
        self._latest = now
