"""Tells each iteration and event of a session once; iterations under TensorRT-LLM's JSON keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from tidemill.api.shared_session import SharedSession
from tidemill.host.messages import StatsSince
from tidemill.host.session import Session

FOLLOW_SECONDS = 0.05


class StatsReader:
    """Remembers what it has told."""

    def __init__(self, session: Session, shared: SharedSession) -> None:
        self._session = session
        self._shared = shared
        self._told_iteration = self._told_event = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the iterations since the last call, as far back as they are kept."""
        since = StatsSince(iteration=self._told_iteration)
        report = self._shared.between_steps(lambda: self._session.statistics(since))
        if report.iterations:
            self._told_iteration = report.iterations[-1].iteration
        return report.iterations_json()

    def read_events(self) -> list[dict[str, Any]]:
        """Return what happened to requests since the last call, as far back as it is kept."""
        since = StatsSince(event=self._told_event)
        report = self._shared.between_steps(lambda: self._session.statistics(since))
        if report.events:
            self._told_event = report.events[-1].number
        return [event.to_json() for event in report.events]

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Tell iterations until there has been none for a while."""
        import asyncio

        while news := self.read():
            for each in news:
                yield each
            await asyncio.sleep(FOLLOW_SECONDS)
