"""`tidemill serve` as a process, as users start it: its addresses, lines and children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.triton.http_calls import call
from tidemill.frontends.triton.endpoints import choose_endpoints
from tidemill.frontends.triton.process_tree import children_of, hosts_below, stubs_of
from tidemill.frontends.triton.serve_request import PORT_FLAGS

REPOSITORY_ROOT = Path(__file__).parents[2]


class ServeProcess:
    """A started `tidemill serve`; made by `serving`."""

    def __init__(self, process: subprocess.Popen[str], ports: dict[str, int]) -> None:
        self.process = process
        self.http_url = f"http://127.0.0.1:{ports['--http-port']}"
        self.grpc_url = f"127.0.0.1:{ports['--grpc-port']}"
        self.metrics_url = f"http://127.0.0.1:{ports['--metrics-port']}/metrics"
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as pipe:
            self.lines.extend(pipe)

    def wait_for_line(self, part: str, timeout_s: float = 90.0) -> None:
        wait_for(lambda: any(part in line for line in [*self.lines]), part, timeout_s)

    @property
    def server_id(self) -> int:
        (server,) = [
            child
            for child in children_of(self.process.pid)
            if b"--model-repository" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        return server

    def stub_id(self, model: str) -> int:
        (stub,) = [each for each in stubs_of(self.server_id) if each.model == model]
        return stub.process_id

    @property
    def host_ids(self) -> list[int]:
        return hosts_below(self.process.pid)

    def ask(self, model: str, prompt: str, max_tokens: int = 8) -> tuple[int, object]:
        """Ask once; a connection that fails is status 0."""
        body = {"text_input": prompt, "max_tokens": max_tokens, "exclude_input_in_output": True}
        try:
            return call(f"{self.http_url}/v2/models/{model}/generate", body)
        except OSError as error:
            return 0, str(error)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(timeout=45)
        self._reader.join(timeout=5)
        return code


@contextmanager
def serving(repository: Path, *flags: str) -> Iterator[ServeProcess]:
    """Serve a repository on free ports until the body has ended."""
    ports = dict(choose_endpoints("127.0.0.1", dict.fromkeys(PORT_FLAGS, 0)).flag_to_port)
    port_flags = [part for flag, port in ports.items() for part in (flag, str(port))]
    command = [sys.executable, "-m", "tidemill", "serve", "--model_repository", str(repository)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)}
    process = subprocess.Popen(
        [*command, *port_flags, *flags], env=environment, stderr=subprocess.PIPE, text=True
    )
    serve = ServeProcess(process, ports)
    try:
        wait_for(
            lambda: process.poll() is not None or any("metrics http" in x for x in [*serve.lines]),
            "the server",
            90.0,
        )
        assert process.poll() is None, serve.lines
        yield serve
    finally:
        if process.poll() is None:
            serve.stop()


def wait_for(is_so: Callable[[], bool], what: str, timeout_s: float = 30.0) -> float:
    """Wait until something is so; return after how many seconds it was."""
    start = time.monotonic()
    while not is_so():
        assert time.monotonic() - start < timeout_s, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)
    return time.monotonic() - start
