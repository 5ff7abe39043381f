"""Checks that the ports a server wants are free, before anything is started.

A port in use otherwise shows only as a line deep in tritonserver's log, after models have loaded.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping

from tidemill.base.errors import ServerError


def choose_ports(host: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """Return a port for each flag: the wanted one if it is free, a free one for 0.

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
    return chosen
