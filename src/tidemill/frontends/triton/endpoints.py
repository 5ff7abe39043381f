"""Where a server listens: the ports it gets and the addresses that clients use.

Ports are checked before anything is started: one in use otherwise shows only as a line deep in
tritonserver's log, after models have loaded.
"""

from __future__ import annotations

import errno
import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from tidemill.base.errors import ServerError
from tidemill.frontends.triton.serve_request import LOOPBACK


@dataclass(frozen=True)
class Endpoints:
    """The host a server binds, the port behind each of its flags, and what clients call them."""

    host: str
    flag_to_port: Mapping[str, int]
    http_host: str | None = None

    @property
    def http_url(self) -> str:
        return f"http://{self.http_address}"

    @property
    def http_address(self) -> str:
        return self._address("--http-port", self.http_host)

    @property
    def grpc_url(self) -> str:
        return self._address("--grpc-port")

    @property
    def metrics_url(self) -> str:
        return f"http://{self._address('--metrics-port')}/metrics"

    def _address(self, flag: str, host: str | None = None) -> str:
        host = host or self.host
        host = LOOPBACK if host in ("0.0.0.0", "") else host
        return f"{host}:{self.flag_to_port[flag]}"

    def is_ready(self, model: str = "") -> bool:
        """Ask once whether the server, or one model, says that it is ready."""
        path = f"/v2/models/{model}/ready" if model else "/v2/health/ready"
        connection = http.client.HTTPConnection(self.http_address, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def choose_endpoints(
    host: str, wanted: Mapping[str, int], http_host: str | None = None
) -> Endpoints:
    """Give each flag a port: the wanted one if it is free, a free one for 0.

    Raises: ServerError naming every flag whose port is in use or cannot be opened.
    """
    chosen: dict[str, int] = {}
    faults: list[str] = []
    held: list[socket.socket] = []
    try:
        for flag, port in wanted.items():
            probe = socket.socket()
            held.append(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                in_use = error.errno == errno.EADDRINUSE
                reason = "in use" if in_use else str(error.strerror or error)
                faults.append(f"{flag} {port}: {reason}")
                continue
            chosen[flag] = probe.getsockname()[1]
    finally:
        for probe in held:
            probe.close()
    if faults:
        raise ServerError(
            "the server's ports cannot be opened",
            where=host,
            expected="free ports",
            got="; ".join(faults),
            hint="other ports, or stop what listens there",
        )
    return Endpoints(host, chosen, http_host)
