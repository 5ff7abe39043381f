"""One Triton request's way back: any number of responses, then exactly one final flag.

In: updates of the engine, one stream for each prompt of the request. Out: responses in the style's
tensors, made as the news comes and sent together by `flush` (decision 072). Whatever happens, the
request ends once: a request without its final flag hangs its client and delays the server's
shutdown. Knows nothing of inputs.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping

from tidemill.frontends.triton.stub_api import (
    FINAL,
    Array,
    Response,
    ResponseSender,
    make_error,
    make_response,
)
from tidemill.host.messages import Update


class Answer(ABC):
    """The open end of one request with `num_rows` prompts; callable from any thread."""

    def __init__(self, sender: ResponseSender, num_rows: int) -> None:
        self.sender = sender
        self.num_rows = num_rows
        self._open_rows = set(range(num_rows))
        self._unsent: list[tuple[Response, int]] = []
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def is_closed(self) -> bool:
        """Whether the last response was made; it is sent by the next `flush`."""
        return self._is_closed

    def update(self, row: int, update: Update) -> None:
        """Pass on what the engine tells of one prompt; an error of one ends the whole request."""
        if update.error is not None:
            self.fail(update.error.to_exception())
            return
        if update.is_final:
            self._open_rows.discard(row)
        self.take(row, update, is_last=not self._open_rows)

    @abstractmethod
    def take(self, row: int, update: Update, is_last: bool) -> None:
        """Make a response of an update or keep it; with `is_last` the final one must be made."""

    def send(self, outputs: Mapping[str, Array], is_final: bool) -> None:
        """Make a response, with the final flag on the last: no empty one comes after it."""
        response = make_response(outputs)
        with self._lock:
            if not self._is_closed:
                self._unsent.append((response, FINAL if is_final else 0))
                self._is_closed = is_final

    def flush(self) -> None:
        """Send what was made.

        Raises: what the sender did; the answer is open then, for the error that is to end it.
        """
        with self._lock:
            try:
                self._send_unsent()
            except Exception:
                self._is_closed = False
                raise

    def _send_unsent(self) -> None:
        unsent, self._unsent = self._unsent, []
        for response, flags in unsent:
            self.sender.send(response, flags=flags)

    def is_unwanted(self) -> bool:
        """Say whether the client went away before the end.

        Under the lock: Triton 2.51 dies when it is asked while, or after, the final flag is sent.
        """
        with self._lock:
            return not self._is_closed and self.sender.is_cancelled()

    def fail(self, error: Exception) -> None:
        """End the request with an error at once, unless it has ended."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            with contextlib.suppress(Exception):  # the end goes out, whatever became of the rest
                self._send_unsent()
            self.sender.send(make_error(error), flags=FINAL)
