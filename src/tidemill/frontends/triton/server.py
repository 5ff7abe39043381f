"""Runs NVIDIA's tritonserver on a model repository, as a context manager.

In: `ServeRequest`. Out: a ready server at its `endpoints`, stopped with the body. The
demo, the tests and `serve` share it. Known traps of the wheel's server are designed out here:
library paths, stub, ports, shared-memory leftovers, admin endpoints open to anybody.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tidemill.base.errors import ServerError
from tidemill.frontends.triton.door_config import read_api_keys
from tidemill.frontends.triton.endpoints import choose_endpoints
from tidemill.frontends.triton.installation import (
    find_installation,
    server_environment,
    stage_backends,
)
from tidemill.frontends.triton.serve_request import ServeRequest
from tidemill.frontends.triton.server_output import ServerOutput
from tidemill.frontends.triton.shared_memory import remove_leftovers, unique_prefix
from tidemill.frontends.triton.staged_repository import PLAIN_PATH, stage_repository

RESTRICTED_APIS = "shared-memory,model-repository,logging,trace"
USER_APIS = "metadata,inference,model-config,statistics"
RESTRICTION_FLAGS = ("--http-restricted-api", "--grpc-restricted-protocol")
POLL_S = 0.03


def print_line(line: str) -> None:
    """Write a line of the server's to stderr."""
    print(line, file=sys.stderr, flush=True)


class TritonServer:
    """A tritonserver process: started and ready inside of the `with`, gone after it.

    Raises: ConfigError for flags that clash with the request, ServerError when the server cannot
    be started, ends before it is ready, or takes too long.
    """

    def __init__(self, request: ServeRequest, pass_on: Callable[[str], None] = print_line) -> None:
        request.check()
        self.request = request
        self._pass_on = pass_on
        self._installation = find_installation()
        self.endpoints = choose_endpoints(request.host, request.wanted_ports, request.http_host)
        self._prefix = unique_prefix()
        self._staging: Path | None = None
        self._process: subprocess.Popen[str] | None = None
        self._output: ServerOutput | None = None

    def __enter__(self) -> TritonServer:
        try:
            self.start()
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process, in a session of its own so that a Ctrl-C reaches it through us."""
        remove_leftovers()
        temporary = tempfile.gettempdir()
        place = temporary if PLAIN_PATH.fullmatch(temporary) else "/tmp"
        self._staging = Path(tempfile.mkdtemp(prefix="tidemill-server-", dir=place))
        self._process = subprocess.Popen(
            self._command(self._staging),
            env=server_environment(self._installation),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._output = ServerOutput(
            self._process.stdout, self._pass_on, self.request.shows_everything
        )

    def _command(self, staging: Path) -> list[str]:
        """Return the command line, staging the directories that it names."""
        request = self.request
        repository = stage_repository(
            request.model_repository, staging / "models", self._pass_on, request.settings
        )
        command = [
            str(self._installation.binary),
            f"--model-repository={repository.resolve()}",
            *self.endpoints.server_flags,
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={request.exit_timeout_s}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
        ]
        backends = stage_backends(self._installation, staging / "backends")
        if backends is not None:
            command.append(f"--backend-directory={backends}")
        return [*command, *restriction_flags(request), *request.server_flags]

    def wait_until_ready(self) -> None:
        """Block until every model is ready.

        Raises: ServerError with the server's own last errors when it ends or the time is over.
        """
        assert self._process is not None
        deadline = time.monotonic() + self.request.ready_timeout_s
        while not self.endpoints.is_ready():
            code = self._process.poll()
            if code is not None:
                raise self._not_ready(f"it ended with exit code {code}")
            if time.monotonic() > deadline:
                raise self._not_ready(f"not ready after {self.request.ready_timeout_s:g} s")
            time.sleep(POLL_S)

    def _not_ready(self, got: str) -> ServerError:
        assert self._output is not None
        self._output.join(timeout_s=1.0)
        return ServerError(
            "tritonserver did not become ready",
            where=str(self.request.model_repository),
            expected="every model loaded",
            got=f"{got}; its last lines:\n{self._output.faults()}",
            hint="mend or remove the model or flag named above",
        )

    @property
    def process_id(self) -> int:
        """The server's process while it is started."""
        assert self._process is not None
        return self._process.pid

    def restart(self) -> None:
        """End the server at once, with all that hangs, and start it again where it listened.

        Raises: ServerError when it does not become ready.
        """
        self.kill()
        self.stop()
        self.start()
        self.wait_until_ready()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the server to end by itself; return its exit code, None when time is over."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """End the server in order, by force after its own exit timeout; clean up what it leaves."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            if self.wait(self.request.exit_timeout_s + 5.0) is None:
                self._pass_on("tritonserver did not end in time; killing it")
            self.kill()
            self._process.wait()
        if self._output is not None:
            self._output.join(timeout_s=1.0)
        remove_leftovers(self._prefix)
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)

    def kill(self) -> None:
        """End the server and its stubs at once; stubs outlive a server that died."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def restriction_flags(request: ServeRequest) -> list[str]:
    """Return the flags that close the admin endpoints, unless the user sets them.

    Where HTTP needs an API key or TLS, gRPC does, in Triton's own way.
    """
    key = request.admin_key or secrets.token_hex(16)
    flags = [
        f"{flag}={RESTRICTED_APIS}:admin-key={key}"
        for flag in RESTRICTION_FLAGS
        if not any(given.startswith(flag) for given in request.server_flags)
    ]
    door = request.front_door
    if door is None:
        return flags
    for api_key in read_api_keys(door)[:1]:
        flags.append(f"--grpc-restricted-protocol={USER_APIS}:api-key={api_key}")
    if door.tls_cert is not None:
        flags.append("--grpc-use-ssl=true")
        flags += [f"--grpc-server-cert={door.tls_cert}", f"--grpc-server-key={door.tls_key}"]
    return flags
