"""Keeps the cost of many streams' responses within a share of the machine, by joining their news.

A response through Triton costs about a quarter of a millisecond of processor time, whatever it
holds, taken from the engine where both share their cores. With few streams nothing is held back:
every step's news is a response of its own. Knows nothing of tensors. Figures: decision 053.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from tidemill.base.cpus import allowed_cpus, cpu_quota
from tidemill.host.messages import Update

RESPONSE_COST_S = 0.25e-3
SHARE_FOR_RESPONSES = 0.05
MAX_UNPACED_STREAMS = 8


def response_gap_s(num_streams: int, num_cpus: float) -> float:
    """Return how far apart a stream's responses are to be, at least."""
    if num_streams <= MAX_UNPACED_STREAMS:
        return 0.0
    return num_streams * RESPONSE_COST_S / (SHARE_FOR_RESPONSES * num_cpus)


def available_cpus() -> float:
    """Return how many processors this process may use, or what of their time its quota pays for."""
    return min(len(allowed_cpus()), cpu_quota() or math.inf)


class PacedNews:
    """Joins one request's updates; `gap_s` says how far apart what it gives is to be."""

    def __init__(self, gap_s: Callable[[], float]) -> None:
        self._gap_s = gap_s
        self._latest = 0.0
        self._held: Update | None = None

    def take(self, update: Update) -> Update | None:
        """Take an update; give what is to go out now, None when it waits for the next.

        The first news, the last and whatever holds more than text and tokens never wait.
        """
        joined = update if self._held is None else join(self._held, update)
        now = time.monotonic()
        if self._latest and is_plain(update) and now - self._latest < self._gap_s():
            self._held = joined
            return None
        self._held, self._latest = None, now
        return joined


def is_plain(update: Update) -> bool:
    """Say whether an update is news of the one stream that goes on, text and tokens alone."""
    if update.index or update.num_open > 1:
        return False
    return update == Update(
        update.request_id,
        update.token_ids,
        update.text,
        None,
        update.num_input_tokens,
        update.num_output_tokens,
        num_open=update.num_open,
    )


def join(earlier: Update, later: Update) -> Update:
    """Return both as one: the later, with the earlier's tokens and text before its own."""
    later.token_ids = earlier.token_ids + later.token_ids
    later.text = earlier.text + later.text
    return later
