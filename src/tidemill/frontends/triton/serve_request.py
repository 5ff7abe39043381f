"""What to serve, as one dataclass, and the checks that need no server.

In: a user's wishes. Out: refusals before anything is started. Shared by the launcher and whoever
fills it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from tidemill.base.errors import ConfigError, ServerError
from tidemill.frontends.triton.door_config import DoorConfig
from tidemill.frontends.triton.repository import model_dirs
from tidemill.host.runtime_settings import read_session_settings

LOOPBACK = "127.0.0.1"
PORT_FLAGS = ("--http-port", "--grpc-port", "--metrics-port")
ADDRESS_FLAGS = ("--http-address", "--grpc-address", "--metrics-address")
OWN_FLAGS = (*PORT_FLAGS, *ADDRESS_FLAGS, "--exit-timeout-secs")


@dataclass(frozen=True)
class WatchdogConfig:
    """How a server is watched. Units: seconds; `max_restarts` counts those within the window."""

    probe_period_s: float = 10.0
    probe_timeout_s: float = 60.0
    max_restarts: int = 5
    restart_window_s: float = 120.0

    def check(self) -> None:
        """Refuse times that never pass. Raises: ConfigError naming both."""
        if not (isfinite(self.probe_period_s) and isfinite(self.probe_timeout_s)):
            raise ConfigError(
                "the watchdog would never look",
                where="--probe_period, --probe_timeout",
                expected="finite numbers of seconds",
                got=f"{self.probe_period_s}, {self.probe_timeout_s}",
                hint="leave them out to have 10 and 60, or --no-watchdog",
            )


@dataclass(frozen=True)
class ServeRequest:
    """What to serve, where to listen, and flags for tritonserver itself.

    The default address is this machine alone: Triton has no authentication. Port 0 picks a free
    one. Without `admin_key` the restricted endpoints are closed to everybody. Without `watchdog` a
    server that dies stays dead. With `front_door` HTTP clients meet a proxy of ours, and
    tritonserver listens on `http_host` for it alone; None is `host`. `settings` are parameters that
    override those of every model's config.pbtxt. Units: timeouts count seconds.
    """

    model_repository: Path
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    host: str = LOOPBACK
    server_flags: tuple[str, ...] = ()
    admin_key: str | None = None
    is_verbose: bool = False
    ready_timeout_s: float = 120.0
    exit_timeout_s: int = 15
    watchdog: WatchdogConfig | None = WatchdogConfig()
    front_door: DoorConfig | None = None
    http_host: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def wanted_ports(self) -> dict[str, int]:
        """The ports by tritonserver's flags for them."""
        ports = (self.http_port, self.grpc_port, self.metrics_port)
        return dict(zip(PORT_FLAGS, ports, strict=True))

    @property
    def shows_everything(self) -> bool:
        """Whether the server's whole log was asked for, by us or by its own flag."""
        asked_server = any(flag.startswith("--log-verbose") for flag in self.server_flags)
        return self.is_verbose or asked_server

    def check(self) -> None:
        """Refuse what cannot be served.

        Raises: ConfigError for flags that clash with our own or share a port, ServerError for a
        repository without a model.
        """
        check_server_flags(self.server_flags)
        check_ports(self.wanted_ports)
        if self.watchdog is not None:
            self.watchdog.check()
        read_session_settings(self.settings)
        if self.front_door is not None:
            self.front_door.check()
        check_repository(self.model_repository)


def check_repository(repository: Path) -> None:
    """Refuse a repository without a model before a server is started.

    Raises: ServerError when the directory is missing or holds no model directory.
    """
    if not (repository.is_dir() and model_dirs(repository)):
        raise ServerError(
            "there is no model to serve",
            where=str(repository),
            expected="a model repository: one directory for each model",
            got="a directory without any" if repository.is_dir() else "no such directory",
            hint="tidemill deploy --engine_dir ENGINE --model_repository DIR --name NAME",
        )


def check_ports(wanted: Mapping[str, int]) -> None:
    """Refuse one port for several listeners, which each port alone does not show.

    Raises: ConfigError naming the flags.
    """
    ports = [port for port in wanted.values() if port]
    shared = [flag for flag, port in wanted.items() if ports.count(port) > 1]
    if shared:
        raise ConfigError(
            "two listeners cannot have one port",
            where=", ".join(shared),
            expected="ports that differ",
            got=", ".join(str(wanted[flag]) for flag in shared),
            hint="tidemill serve --help has the defaults: 8000, 8001, 8002",
        )


def check_server_flags(flags: tuple[str, ...]) -> None:
    """Refuse tritonserver flags that this command sets itself.

    Raises: ConfigError naming them.
    """
    clashing = [flag for flag in flags if flag.split("=")[0] in OWN_FLAGS]
    if clashing:
        raise ConfigError(
            "these tritonserver flags are set by tidemill serve itself",
            where="flags after --",
            expected="flags other than " + ", ".join(OWN_FLAGS),
            got=", ".join(clashing),
            hint="tidemill's own --http-port, --grpc-port, --metrics-port, --host, --exit-timeout",
        )
