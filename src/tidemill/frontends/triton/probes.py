"""Answers the watchdog's probes: proof that the engine behind a model still computes.

In: requests with the probe's mark, and what the model hears from its host anyway. Out: an empty
response once the engine gave a token or made a step, an error when it cannot. A probe asks for one
token; where the engine is busy, a token of anybody's proves as much, so that a full engine is never
taken for a dead one. Probes are no user's requests: they count in no metric.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tidemill.base.errors import CancelledError, QueueFullError
from tidemill.frontends.triton.probe_mark import PROBE_MARK
from tidemill.frontends.triton.stub_api import (
    FINAL,
    InferenceRequest,
    ResponseSender,
    make_error,
    make_response,
)
from tidemill.host.messages import GenerateRequest, Update


class Client(Protocol):
    """What this module needs of the host's client."""

    def submit(self, request: GenerateRequest, on_update: Callable[[Update], None]) -> None: ...

    def cancel(self, request_id: str) -> None: ...


@dataclass
class _Probe:
    sender: ResponseSender
    first_iteration: int | None = None


class Probes:
    """The probes of one model that wait for a sign of life. Any thread may call."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._id_to_probe: dict[str, _Probe] = {}

    def start(self, sender: ResponseSender) -> None:
        """Ask the engine for one token; the sender hears when it, or another, has come."""
        probe_id = f"probe-{uuid.uuid4().hex}"
        with self._lock:
            self._id_to_probe[probe_id] = _Probe(sender)
        request = GenerateRequest(request_id=probe_id, prompt_tokens=[0], max_tokens=1, end_id=-1)
        self._client.submit(request, lambda update: self._hear_own(probe_id, update))

    def hear_progress(self) -> None:
        """Take note that the engine gave somebody's request news: every probe has its proof."""
        if self._id_to_probe:  # read without the lock: this runs once for each token
            for probe_id in self._waiting():
                self._end(probe_id)

    def hear_iteration(self, iteration: int) -> None:
        """Take note of the engine's step counter: a probe that saw it advance has its proof."""
        with self._lock:
            advanced = []
            for probe_id, probe in self._id_to_probe.items():
                if probe.first_iteration is None:
                    probe.first_iteration = iteration
                elif probe.first_iteration != iteration:
                    advanced.append(probe_id)
        for probe_id in advanced:
            self._end(probe_id)

    def close(self) -> None:
        """End every probe that waits."""
        for probe_id in self._waiting():
            self._end(probe_id, CancelledError("the model is being unloaded"))

    def _waiting(self) -> list[str]:
        with self._lock:
            return list(self._id_to_probe)

    def _hear_own(self, probe_id: str, update: Update) -> None:
        error = update.error.to_exception() if update.error is not None else None
        # A full queue is refused by a host that lives and works.
        if update.is_final:
            self._end(probe_id, None if isinstance(error, QueueFullError) else error)

    def _end(self, probe_id: str, error: Exception | None = None) -> None:
        with self._lock:
            probe = self._id_to_probe.pop(probe_id, None)
        if probe is None:
            return
        self._client.cancel(probe_id)
        probe.sender.send(make_response({}) if error is None else make_error(error), flags=FINAL)


def is_probe(request: InferenceRequest) -> bool:
    """Say whether a request bears the watchdog's mark."""
    return PROBE_MARK in request.parameters()
