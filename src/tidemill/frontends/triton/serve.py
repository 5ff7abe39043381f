"""Serves a model repository until it is told to stop: the library side of `tidemill serve`.

In: `ServeRequest`. Out: the exit code: 0 after SIGINT or SIGTERM, the server's own when it could
not be kept alive, or was not to be. A first signal lets requests in flight finish; a second one
ends the server at once.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from tidemill.frontends.triton.endpoints import Endpoints, choose_endpoints
from tidemill.frontends.triton.process_tree import adopt_orphans
from tidemill.frontends.triton.serve_request import LOOPBACK, ServeRequest
from tidemill.frontends.triton.server import TritonServer, print_line
from tidemill.frontends.triton.watchdog import Watchdog

__all__ = ["ServeRequest", "serve"]

WAIT_S = 0.5
HTTP_FLAG = "--http-port"


class _StopRequested(BaseException):
    """A signal came; not an Exception, so that nothing on the way mistakes it for a failure."""


def serve(request: ServeRequest, say: Callable[[str], None] = print_line) -> int:
    """Start tritonserver, say where it listens, and wait until it or the user ends it.

    Runs on the main thread, where signals are handled.

    Raises: ServerError and ConfigError as TritonServer does.
    """
    start = time.perf_counter()
    say(f"starting tritonserver on {request.model_repository}")
    request.check()
    if request.settings:
        chosen = ", ".join(f"{name} {text} (user)" for name, text in request.settings.items())
        say(f"every engine is run with {chosen}")
    public = choose_endpoints(request.host, {HTTP_FLAG: request.http_port})
    if request.front_door is not None:
        request = replace(request, http_port=0, http_host=LOOPBACK)
    server = TritonServer(request, say)
    watchdog = None
    if request.watchdog is not None:
        adopt_orphans()
        watchdog = Watchdog(server, request.watchdog, say)
    try:
        with _signals_stop(server), server, _front_door(server, watchdog, public) as url:
            say(f"ready after {time.perf_counter() - start:.1f} s")
            say(f"  HTTP    {url}")
            say(f"  gRPC    {server.endpoints.grpc_url}")
            say(f"  metrics {server.endpoints.metrics_url}")
            code = watchdog.watch() if watchdog is not None else _wait(server)
            say(f"tritonserver ended with exit code {code}")
            return code if code >= 0 else 128 - code
    except _StopRequested:
        say("stopped")
        return 0


def _wait(server: TritonServer) -> int:
    while (code := server.wait(WAIT_S)) is None:
        pass
    return code


@contextmanager
def _front_door(
    server: TritonServer, watchdog: Watchdog | None, public: Endpoints
) -> Iterator[str]:
    """Open the front door, if there is to be one, and give the URL that clients use."""
    request, config = server.request, server.request.front_door
    if config is None:
        yield server.endpoints.http_url
        return
    # Only the door needs aiohttp; a server from a container may do without both.
    from tidemill.frontends.triton.front_door import DoorAddress, FrontDoor

    door = FrontDoor(
        DoorAddress(public.host, public.flag_to_port[HTTP_FLAG]),
        server.endpoints.http_url,
        config,
        (lambda: True) if watchdog is None else (lambda: watchdog.is_healthy),
        request.exit_timeout_s,
    )
    with door:
        yield f"{config.scheme}://{public.http_address}"


@contextmanager
def _signals_stop(server: TritonServer) -> Iterator[None]:
    """Turn a first SIGINT or SIGTERM into an orderly stop, and a second into an immediate one."""
    is_stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            server.kill()
        else:
            is_stopping = True
            raise _StopRequested

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
