"""The process that `tidemill serve` becomes when its command line has been understood.

In: a request, as JSON in the only argument. Out: serve's exit code, errors as every verb prints
them. It keeps its id and imports what serving needs: the parser is gone with the program before,
and what encrypts or unpacks connections is only read where a certificate asks for it (docs/LOG.md,
2026-11-28, has what that saves). Started by `become_server`, never by hand.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tidemill.base.python_start import python_arguments
from tidemill.frontends.cli.shell import as_plain, end_as_by_ctrl_c, run_verb

if TYPE_CHECKING:
    from tidemill.frontends.triton.serve_request import ServeRequest

# Looked for by aiohttp and asyncio, which do without: TLS, OpenSSL's digests, brotli.
UNUSED_IN_PLAIN_HTTP = ("ssl", "_hashlib", "brotlicffi", "brotli")


def become_server(request: ServeRequest) -> NoReturn:
    """Go on as a fresh process, under the same id, that serves the request."""
    sys.stdout.flush()
    start = [sys.executable, *python_arguments(__name__), json.dumps(as_plain(request))]
    os.execv(sys.executable, start)


def main() -> int:
    """Serve what the command line asked for."""
    end_as_by_ctrl_c()
    values = json.loads(sys.argv[1])
    if values["front_door"] is None or values["front_door"]["tls_cert"] is None:
        sys.modules.update(dict.fromkeys(UNUSED_IN_PLAIN_HTTP))  # type: ignore[arg-type]
    return run_verb(lambda: _serve(values), ["serve"])


def _serve(values: dict[str, Any]) -> int:
    from tidemill.frontends.triton.serve import serve

    return serve(request_from(values))


def request_from(values: dict[str, Any]) -> ServeRequest:
    """Read what `become_server` wrote."""
    from tidemill.frontends.triton.door_config import DoorConfig
    from tidemill.frontends.triton.serve_request import ServeRequest, WatchdogConfig

    door, watchdog = values["front_door"], values["watchdog"]
    read = {
        "model_repository": Path(values["model_repository"]),
        "server_flags": tuple(values["server_flags"]),
        "watchdog": watchdog and WatchdogConfig(**watchdog),
        "front_door": door and DoorConfig(**{name: _as_path(door[name]) for name in door}),
    }
    return ServeRequest(**values | read)


def _as_path(value: int | str | None) -> Any:
    """Every text of a front door is a path."""
    return Path(value) if isinstance(value, str) else value
