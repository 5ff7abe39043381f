"""The serve verb: starts the real tritonserver on a model repository, in `serving`'s process.

One of the CLI's doors to the Triton frontend; the import contracts name them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidemill.base.errors import ConfigError
from tidemill.frontends.cli.session_flags import takes_settings

HELP = """Serve a model repository with NVIDIA's tritonserver.

Arguments after -- go to tritonserver as they are. Flags that say how engines are run, from
--batch_scheduler_policy on, override the parameters of every model's config.pbtxt.

\b
Examples:
  tidemill serve --model_repository ./repository
  tidemill serve --model_repository ./repository --http-port 9000 -- --log-verbose=1
"""


@takes_settings
def serve(
    model_repository: Annotated[
        Path, typer.Option("--model_repository", help="Repository that deploy wrote.")
    ],
    http_port: Annotated[int, typer.Option("--http_port", min=1, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option("--grpc_port", min=1, max=65535)] = 8001,
    metrics_port: Annotated[int, typer.Option("--metrics_port", min=1, max=65535)] = 8002,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 or :: is all of them.")
    ] = "127.0.0.1",
    front_door: Annotated[
        bool,
        typer.Option("--front-door/--no-front-door", help="Bound HTTP bodies before Triton."),
    ] = True,
    max_body_mib: Annotated[int, typer.Option("--max_body_mib", min=1)] = 64,
    max_json_depth: Annotated[int, typer.Option("--max_json_depth", min=2, max=1000)] = 64,
    api_key_file: Annotated[
        Path | None, typer.Option("--api_key_file", help="Keys that clients need, one a line.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls_cert", help="PEM certificate chain, for HTTP and gRPC.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls_key", help="Its private key.")] = None,
    watchdog: Annotated[
        bool, typer.Option("--watchdog/--no-watchdog", help="Restart what dies or hangs.")
    ] = True,
    probe_period: Annotated[
        float, typer.Option("--probe_period", min=0.1, help="Seconds between inferences of ours.")
    ] = 10.0,
    probe_timeout: Annotated[
        float,
        typer.Option("--probe_timeout", min=1.0, help="Seconds without any sign of life."),
    ] = 60.0,
    max_restarts: Annotated[
        int, typer.Option("--max_restarts", min=0, help="Restarts within two minutes.")
    ] = 5,
    exit_timeout: Annotated[
        int,
        typer.Option(
            "--exit_timeout",
            min=0,
            max=10**6,
            help="Seconds to finish requests: the door's, then Triton's.",
        ),
    ] = 15,
    server_flags: Annotated[
        list[str] | None, typer.Argument(help="Flags for tritonserver, after --.")
    ] = None,
    *,
    settings: dict[str, str],
) -> None:
    from tidemill.frontends.cli.serving import become_server
    from tidemill.frontends.triton.door_config import MEBIBYTE, DoorConfig
    from tidemill.frontends.triton.serve_request import ServeRequest, WatchdogConfig

    needs_door = api_key_file is not None or tls_cert is not None or tls_key is not None
    if needs_door and not front_door:
        raise ConfigError(
            "API keys and TLS belong to the front door",
            where="--api_key_file, --tls_cert, --tls_key",
            expected="the front door",
            got="--no-front-door",
            hint="leave --no-front-door away, or let a gateway of your own do it",
        )
    door = DoorConfig(max_body_mib * MEBIBYTE, max_json_depth, api_key_file, tls_cert, tls_key)
    request = ServeRequest(
        model_repository=model_repository,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        host=host,
        exit_timeout_s=exit_timeout,
        front_door=door if front_door else None,
        server_flags=tuple(server_flags or ()),
        watchdog=WatchdogConfig(probe_period, probe_timeout, max_restarts) if watchdog else None,
        settings=settings,
    )
    become_server(request)
