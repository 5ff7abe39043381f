"""One request through the front door: checked, passed on, answered as it comes.

In: HTTP requests as aiohttp has parsed them. Out: the same requests to tritonserver and its answers
back, byte for byte and piece by piece. What Triton does badly is done here: bodies too large or too
deep are refused, readiness is the watchdog's word, a stream whose server died ends with an error.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Callable

from aiohttp import ClientConnectorError, ClientError, ClientResponse, ClientSession, web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from tidemill.frontends.triton.body_check import (
    HEADER_LENGTH,
    BodyBounds,
    CheckedBody,
    Envelope,
    RefusedBodyError,
    check_body,
)

# Of one connection each, or made anew here: the body goes on unpacked.
HOP_HEADERS = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "host", "content-length", "content-encoding", "expect"}
    | {"authorization", "x-api-key", HEADER_LENGTH.lower()}
)
ANSWER_HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding"})
EVENT_STREAM = "text/event-stream"
BODY_TIMEOUT_S = 60.0
# Shorter bodies are checked in less time than it takes to reach another thread.
SHORT_BYTES = 1 << 16
RETRY_S = 0.1


class DoorHandler:
    """Answers every request that comes to the door."""

    def __init__(
        self,
        upstream: str,
        session: ClientSession,
        keys: tuple[str, ...],
        bounds: BodyBounds,
        is_healthy: Callable[[], bool],
        patience_s: float = 5.0,
    ) -> None:
        self._upstream = upstream
        self._session = session
        self._keys = [key.encode() for key in keys]
        self._bounds = bounds
        self._is_healthy = is_healthy
        self._patience_s = patience_s

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Check a request, pass it on and answer it."""
        is_health = request.path.startswith("/v2/health/")
        if not request.raw_path.startswith("/v2"):
            return fault(404, "only Triton's /v2 interface is served here")
        if is_health and request.path.endswith("/ready") and not self._is_healthy():
            return fault(503, "a model gives no sign of life")
        if not is_health and not self._is_known(request):
            return fault(401, "an API key is required: Authorization: Bearer KEY")
        try:
            body = await self._take_body(request)
        except asyncio.TimeoutError:
            return fault(408, f"the body did not come within {BODY_TIMEOUT_S:g} s")
        except RefusedBodyError as error:
            return fault(error.status, str(error))
        try:
            return await self._pass_on(request, body, 0.0 if is_health else self._patience_s)
        except ClientError as error:
            return fault(503, f"the server went away before it answered: {error!r}")

    def _is_known(self, request: web.Request) -> bool:
        if not self._keys:
            return True
        given = request.headers.get("X-API-Key", "")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token.strip()
        shown = given.encode("utf-8", "replace")
        return any([hmac.compare_digest(shown, key) for key in self._keys])

    async def _take_body(self, request: web.Request) -> CheckedBody:
        if (request.content_length or 0) > self._bounds.max_bytes:
            raise RefusedBodyError(413, f"the body has more than {self._bounds.max_bytes} bytes")
        body = await asyncio.wait_for(request.read(), BODY_TIMEOUT_S)
        envelope = Envelope(
            encoding=", ".join(request.headers.getall("Content-Encoding", ())).lower(),
            header_lengths=tuple(request.headers.getall(HEADER_LENGTH, ())),
            is_infer=request.path.endswith("/infer"),
        )
        if len(body) <= SHORT_BYTES and not envelope.encoding:
            return check_body(body, envelope, self._bounds)
        return await asyncio.to_thread(check_body, body, envelope, self._bounds)

    async def _pass_on(
        self, request: web.Request, body: CheckedBody, patience_s: float
    ) -> web.StreamResponse:
        url = URL(self._upstream + request.raw_path, encoded=True)
        headers = without(request.headers, HOP_HEADERS)
        if body.header_length is not None:
            headers[HEADER_LENGTH] = str(body.header_length)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                answer = await self._session.request(
                    request.method,
                    url,
                    data=body.data or None,
                    headers=headers,
                    allow_redirects=False,
                )
                break
            except ClientConnectorError:
                # Nothing was sent: the server is being restarted, and may be back in a moment.
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(RETRY_S)
        async with answer:
            if "Content-Length" in answer.headers:
                whole = await answer.read()
                headers = without(answer.headers, ANSWER_HOP_HEADERS | {"content-length"})
                return web.Response(status=answer.status, body=whole, headers=headers)
            return await _stream(request, answer)


async def _stream(request: web.Request, answer: ClientResponse) -> web.StreamResponse:
    headers = without(answer.headers, ANSWER_HOP_HEADERS)
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.enable_chunked_encoding()
    await response.prepare(request)
    try:
        async for piece in answer.content.iter_any():
            await response.write(piece)
    except ClientError:
        if answer.content_type != EVENT_STREAM:
            assert request.transport is not None
            request.transport.abort()
            return response
        text = "the server went away in the middle of this answer; it is being restarted"
        await response.write(b"data: " + json.dumps({"error": text}).encode() + b"\n\n")
    await response.write_eof()
    return response


def without(headers: CIMultiDictProxy[str], names: frozenset[str]) -> CIMultiDict[str]:
    """Return the headers but for some of them."""
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in names)


def fault(status: int, text: str) -> web.Response:
    """Return an error as Triton writes it."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status)
    return web.json_response({"error": text}, status=status, headers=headers)
