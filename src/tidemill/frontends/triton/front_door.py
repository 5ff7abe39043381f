"""The front door: an HTTP server of ours before Triton's, on a thread of its own.

In: where clients come to, and where tritonserver listens for us alone. Out: a door that is open
inside of the `with`; leaving it lets requests in flight finish. Triton's HTTP parser can be killed
by one body, knows no keys and no TLS; aiohttp's is fuzzed and kept by others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from tidemill.base.errors import ServerError
from tidemill.frontends.triton.body_check import BodyBounds
from tidemill.frontends.triton.door_config import DoorConfig, make_tls_context, read_api_keys
from tidemill.frontends.triton.door_handler import DoorHandler

START_TIMEOUT_S = 10.0
CANCEL_S = 1.0
MAX_HEADER_BYTES = 16384


@dataclass(frozen=True)
class DoorAddress:
    """Where clients come to."""

    host: str
    port: int


class FrontDoor:
    """A reverse proxy before one tritonserver.

    Raises: ConfigError for unusable keys or certificates, ServerError when it cannot listen.
    """

    def __init__(
        self,
        address: DoorAddress,
        upstream: str,
        config: DoorConfig,
        is_healthy: Callable[[], bool],
        exit_timeout_s: float,
    ) -> None:
        self._address = address
        self._upstream = upstream
        self._config = config
        self._is_healthy = is_healthy
        self._exit_timeout_s = exit_timeout_s
        self._keys = read_api_keys(config)
        self._tls = make_tls_context(config)
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._is_open = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="front-door", daemon=True)

    def __enter__(self) -> FrontDoor:
        self._thread.start()
        if not self._is_open.wait(START_TIMEOUT_S):
            self._failure = TimeoutError(f"not open after {START_TIMEOUT_S:g} s")
        if self._failure is not None:
            raise ServerError(
                "the front door cannot be opened",
                where=f"{self._address.host}:{self._address.port}",
                expected="a free port",
                got=str(self._failure),
                hint="another --http-port, or stop what listens there",
            )
        return self

    def __exit__(self, *_: object) -> None:
        start = time.monotonic()
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(self._exit_timeout_s + START_TIMEOUT_S)
        if time.monotonic() - start >= self._exit_timeout_s:
            # Requests were cut. Who ends tritonserver while it cancels them kills it by signal 11.
            time.sleep(CANCEL_S)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._is_open.set()
            self._loop.close()

    async def _serve(self) -> None:
        # Triton is told the whole story or nothing: bodies and answers pass as they are.
        session = ClientSession(
            connector=TCPConnector(limit=0, force_close=False),
            timeout=ClientTimeout(total=None, sock_connect=5.0),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        async with session:
            bounds = BodyBounds(self._config.max_body_bytes, self._config.max_json_depth)
            handler = DoorHandler(self._upstream, session, self._keys, bounds, self._is_healthy)
            app = web.Application(client_max_size=self._config.max_body_bytes)
            app.router.add_route("*", "/{path:.*}", handler.handle)
            runner = web.AppRunner(
                app,
                access_log=None,
                handler_cancellation=True,  # a client that leaves cancels its request
                shutdown_timeout=self._exit_timeout_s / 2,  # aiohttp waits for it twice
                auto_decompress=False,  # one packed body must not hold the loop
                max_line_size=MAX_HEADER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
            )
            await runner.setup()
            try:
                host, port = self._address.host, self._address.port
                await web.TCPSite(runner, host, port, ssl_context=self._tls, backlog=1024).start()
                self._is_open.set()
                await self._closing.wait()
            finally:
                await runner.cleanup()
