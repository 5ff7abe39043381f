"""One session for many threads of one process: whoever waits for an answer advances everybody's.

Requests come in, each one's updates go out through an iterator of its own. There is no thread
here: one of the waiting ones steps, the others sleep until it has. Knows nothing of prompts.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Protocol, TypeVar

from tidemill.host.messages import GenerateRequest, Update
from tidemill.host.session import Session

_Answer = TypeVar("_Answer")


class Inbox(Protocol):
    """Takes a request's updates, on the thread that steps."""

    def append(self, update: Update, /) -> None: ...


class SharedSession:
    """Shares a session; it is closed with this object."""

    def __init__(self, session: Session) -> None:
        self._session = session
        # Any thread adds to these, even in the middle of a step; whoever steps empties them first.
        self._submitted: deque[GenerateRequest] = deque()
        self._abandoned: deque[str] = deque()
        self._id_to_inbox: dict[str, Inbox] = {}
        self._is_stepping = False
        self._num_visitors = 0
        self._stepped = threading.Condition()

    def start(self, request: GenerateRequest, inbox: Inbox | None = None) -> None:
        """Start a request; its id is used for the first time.

        With an `inbox` of one's own, somebody has to call `advance` until it is full.
        """
        self._id_to_inbox[request.request_id] = deque() if inbox is None else inbox
        self._submitted.append(request)

    def advance(self) -> None:
        """Take a step, or wait for the one that another thread is taking."""
        self._wait_or_step(())

    def updates(self, request_id: str) -> Iterator[Update]:
        """Give a started request's updates up to its last.

        Raises: what the request failed with.
        """
        inbox = self._id_to_inbox[request_id]
        assert isinstance(inbox, deque), "it has an inbox of its own"
        is_final = False
        while not is_final:
            while not inbox:
                self._wait_or_step(inbox)
            update = inbox.popleft()
            if update.error is not None:
                raise update.error.to_exception()
            is_final = update.is_final
            yield update

    @property
    def has_abandoned(self) -> bool:
        """Whether some request was forgotten and has not been ended by a step yet."""
        return bool(self._abandoned)

    def let_go(self, request_id: str) -> None:
        """Keep the inbox of a request no longer, which has ended."""
        self._id_to_inbox.pop(request_id, None)

    def forget(self, request_id: str) -> None:
        """End a request, or let go of one that has ended."""
        # No lock: the garbage collector may run this in the middle of a step.
        self.let_go(request_id)
        self._abandoned.append(request_id)

    def between_steps(self, call: Callable[[], _Answer]) -> _Answer:
        """Call something while nobody steps; whoever would step next waits for it."""
        with self._stepped:
            self._num_visitors += 1
            try:
                self._stepped.wait_for(lambda: not self._is_stepping)
                return call()
            finally:
                self._num_visitors -= 1
                self._stepped.notify_all()

    def close(self) -> None:
        """Close the session."""
        with self._stepped:
            assert not self._is_stepping, "closed in the middle of a step"
            self._session.close()

    def _wait_or_step(self, inbox: Collection[Update]) -> None:
        with self._stepped:
            if self._is_stepping or self._num_visitors:
                self._stepped.wait()
                return
            if inbox:
                return
            self._is_stepping = True
        try:
            self._step()
        finally:
            with self._stepped:
                self._is_stepping = False
                self._stepped.notify_all()

    def _step(self) -> None:
        while self._submitted:
            self._session.submit(self._submitted.popleft())
        while self._abandoned:
            self._session.cancel(self._abandoned.popleft())
        for update in self._session.step():
            # Whoever left before its request ended has no inbox any more.
            inbox = self._id_to_inbox.get(update.request_id)
            if inbox is not None:
                inbox.append(update)
