"""Keeps a tritonserver serving: notices what died and starts the server again.

Triton reports a dead stub healthy and never restarts one; an open stream of it hangs for ever. So
the whole server is restarted: every connection in flight ends with an error, and the engine host,
a process of its own, is still there with the engine loaded. A dead host is restarted by the models
themselves; one that hangs is ended here. Runs on the thread of its caller.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable

from tidemill.base.errors import TidemillError
from tidemill.frontends.triton.process_tree import Stub, hosts_below, reap_orphans, stubs_of
from tidemill.frontends.triton.serve_request import WatchdogConfig
from tidemill.frontends.triton.server import TritonServer
from tidemill.frontends.triton.watchdog_probe import Health, ProbeRound, Verdict

POLL_S = 0.1
# A stub may be ended by an unload on purpose: by then its model is not ready any more.
UNLOAD_GRACE_S = 0.3


class Watchdog:
    """Watches one started server; `is_healthy` may be read from any thread."""

    def __init__(
        self, server: TritonServer, config: WatchdogConfig, say: Callable[[str], None]
    ) -> None:
        self._server = server
        self._config = config
        self._say = say
        self._stubs: list[Stub] = []
        self._round: ProbeRound | None = None
        self._next_probe = 0.0
        self._restarts: deque[float] = deque()
        self.is_healthy = True

    def watch(self) -> int:
        """Watch until the server was to be restarted too often; return its last exit code."""
        self._look()
        trouble: str | None = None
        while True:
            trouble = trouble or self.find_trouble()
            if trouble is None:
                time.sleep(POLL_S)
                continue
            self.is_healthy = False
            if not self._may_restart():
                self._say(f"{trouble}; it was restarted too often: giving up")
                code = self._server.wait(0)
                return 1 if code is None else code
            trouble = self.heal(trouble)

    def find_trouble(self) -> str | None:
        """Look once; return what is to be healed by a restart."""
        code = self._server.wait(0)
        if code is not None:
            return f"tritonserver ended with exit code {code}"
        dead = [stub for stub in self._stubs if not stub.is_alive]
        if dead:
            time.sleep(UNLOAD_GRACE_S)
            self._look()
            lost = [stub.instance for stub in dead if self._is_lost(stub)]
            if lost:
                return f"the stub of {', '.join(lost)} died"
        if self._round is None and time.monotonic() >= self._next_probe:
            self._look()
            address = self._server.endpoints.http_address
            self._round = ProbeRound(address, self._stubs, self._config.probe_timeout_s)
        return self._hear_probes()

    def heal(self, trouble: str) -> str | None:
        """Start the server again, with a new engine host where the old one gives no sign of life.

        Returns what is still to be healed, None when the server is ready.
        """
        start = time.perf_counter()
        self._say(f"{trouble}: restarting tritonserver")
        self._round = None
        if "no sign of life" in trouble:
            for process_id in hosts_below(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
        try:
            self._server.restart()
        except TidemillError as error:
            return str(error)
        self._look()
        self.is_healthy = True
        self._say(f"ready again after {time.perf_counter() - start:.1f} s")
        return None

    def _look(self) -> None:
        self._stubs = stubs_of(self._server.process_id)
        self._next_probe = time.monotonic() + self._config.probe_period_s
        reap_orphans({self._server.process_id})

    def _is_lost(self, stub: Stub) -> bool:
        """Say whether Triton believes in a stub that is dead and was not replaced."""
        identity = (stub.model_py, stub.instance)
        is_replaced = any((each.model_py, each.instance) == identity for each in self._stubs)
        return not is_replaced and self._server.endpoints.is_ready(stub.model)

    def _hear_probes(self) -> str | None:
        verdict: Verdict | None = self._round.verdict if self._round is not None else None
        if verdict is None:
            return None
        self._round = None
        self._next_probe = time.monotonic() + self._config.probe_period_s
        if verdict.health is Health.DEAD:
            return verdict.reason
        is_well = verdict.health is Health.WELL
        if is_well != self.is_healthy:
            self._say("healthy again" if is_well else f"not healthy: {verdict.reason}")
        if not is_well:
            self._next_probe = time.monotonic() + min(1.0, self._config.probe_period_s)
        self.is_healthy = is_well
        return None

    def _may_restart(self) -> bool:
        now = time.monotonic()
        while self._restarts and self._restarts[0] < now - self._config.restart_window_s:
            self._restarts.popleft()
        self._restarts.append(now)
        return len(self._restarts) <= self._config.max_restarts
