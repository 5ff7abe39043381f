"""A thread that advances requests nobody waits for: those of `generate_async`.

It starts with the first of them, sleeps while there is none, and ends at `close`. Each request's
updates go to its inbox, on whichever thread steps. Knows nothing of asyncio.
"""

from __future__ import annotations

import threading

from tidemill.api.shared_session import Inbox, SharedSession
from tidemill.base.errors import SessionError
from tidemill.host.messages import GenerateRequest, Update


class BackgroundStepper:
    """Steps a shared session until the requests that were started here have ended."""

    def __init__(self, shared: SharedSession) -> None:
        self._shared = shared
        self._changed = threading.Condition()
        self._id_to_inbox: dict[str, Inbox] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._failure: BaseException | None = None

    def start(self, request: GenerateRequest, inbox: Inbox) -> None:
        """Start a request; its inbox gets its updates up to the last."""
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._id_to_inbox[request.request_id] = inbox
            self._shared.start(request, _Watched(self, request.request_id, inbox))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tidemill-step", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def forget(self, request_id: str) -> None:
        """Withdraw a request; it hears no more."""
        with self._changed:
            if self._id_to_inbox.pop(request_id, None) is None:
                return
            self._shared.forget(request_id)
            self._changed.notify_all()

    def ended(self, request_id: str) -> None:
        """Note a request's last update; its inbox is kept no longer."""
        with self._changed:
            self._id_to_inbox.pop(request_id, None)
        self._shared.let_go(request_id)

    def close(self) -> None:
        """End the thread; requests that have not ended hear no more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._waits_for_work():
            try:
                self._shared.advance()
            except BaseException as error:
                with self._changed:
                    self._failure, broken = error, list(self._id_to_inbox.items())
                for request_id, inbox in broken:
                    inbox.append(_broken(request_id, error))
                return

    def _waits_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(self._has_news)
            return not self._is_closed

    def _has_news(self) -> bool:
        # One step ends what was abandoned: its blocks are free before the next request comes.
        return self._is_closed or bool(self._id_to_inbox) or self._shared.has_abandoned


class _Watched:
    """An inbox that tells the stepper when its request has ended."""

    def __init__(self, stepper: BackgroundStepper, request_id: str, inbox: Inbox) -> None:
        self._stepper, self._request_id, self._inbox = stepper, request_id, inbox

    def append(self, update: Update, /) -> None:
        if update.is_final:
            self._stepper.ended(self._request_id)
        self._inbox.append(update)


def _broken(request_id: str, error: BaseException) -> Update:
    failure = SessionError(
        "the engine broke in the middle of a step",
        where=f"request {request_id}",
        expected="a step that ends",
        got=f"{type(error).__name__}: {error}",
        hint="load the engine again",
    )
    return Update.failed(request_id, failure)
