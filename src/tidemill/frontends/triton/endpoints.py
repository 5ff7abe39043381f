"""Where a server listens: the ports it gets and the addresses that clients use.

A host's name is looked up here, and an IPv6 address written as each of tritonserver's parts reads
it: its HTTP listens on 255.255.255.255 for whatever else it is given, and says that all is well.
Ports are checked before anything is started: one in use otherwise shows only as a line deep in
tritonserver's log, after models have loaded.
"""

from __future__ import annotations

import errno
import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from tidemill.base.errors import ServerError
from tidemill.frontends.triton.serve_request import LOOPBACK

_ANY_TO_LOOPBACK = {"0.0.0.0": LOOPBACK, "::": "::1"}


@dataclass(frozen=True)
class Endpoints:
    """The address a server binds, the port behind each of its flags, and what clients call them."""

    host: str
    flag_to_port: Mapping[str, int]
    http_host: str | None = None

    @property
    def server_flags(self) -> list[str]:
        """What tells tritonserver where to listen."""
        http, metrics = (
            f"ipv6:{host}" if ":" in host else host
            for host in (self.http_host or self.host, self.host)
        )
        return [
            f"--http-address={http}",
            f"--grpc-address={_bracketed(self.host)}",
            f"--metrics-address={metrics}",
            *(f"{flag}={port}" for flag, port in self.flag_to_port.items()),
        ]

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
        host = _ANY_TO_LOOPBACK.get(host, host)
        return f"{_bracketed(host)}:{self.flag_to_port[flag]}"

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

    Raises: ServerError naming a host without an address to listen on, or every flag whose port is
    in use or cannot be opened.
    """
    host = _find_address(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    chosen: dict[str, int] = {}
    faults: list[str] = []
    held: list[socket.socket] = []
    try:
        for flag, port in wanted.items():
            try:
                probe = socket.socket(family)
                held.append(probe)
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
            hint="other ports or another host, or stop what listens there",
        )
    return Endpoints(host, chosen, http_host)


def _find_address(host: str) -> str:
    """Return the address that a host's name stands for, of IPv4 where it has one.

    An IPv4 address written as IPv6's is meant as one: tritonserver listens on no such address.
    """
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        if len(address) == 4 and address[3]:
            raise ValueError("an address of one link, which tritonserver does not take")
    except (OSError, ValueError) as error:  # ValueError: no host could be called so
        raise ServerError(
            "there is no such address to listen on",
            where=f"host {host!r}",
            expected="an IPv4 or IPv6 address of this machine, or a name for one",
            got=str(error),
            hint="127.0.0.1 or ::1 for this machine alone, 0.0.0.0 or :: for the network",
        ) from error
    mapped = getattr(ip_address(address[0]), "ipv4_mapped", None)
    return str(mapped or address[0])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
