"""A small client of Triton's generate extension, on the standard library alone.

For tests and the soak: server-sent events of `/generate_stream` as dictionaries.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Generator, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from tidemill.base.errors import ServerError

EVENT_PREFIX = b"data:"


def stream_generate(
    url: str, model: str, payload: Mapping[str, Any], timeout_s: float = 60.0
) -> Generator[dict[str, Any], None, None]:
    """Post to `/v2/models/<model>/generate_stream` and yield each event as it comes.

    Closing the iterator early disconnects, which cancels the request.

    Raises: ServerError when the server answers with an error, first or later, or goes away.
    """
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=timeout_s)
    path = f"{address.path.rstrip('/')}/v2/models/{model}/generate_stream"
    try:
        connection.request("POST", path, body=json.dumps(payload))
        response = connection.getresponse()
        if response.status != 200:
            raise _answer_error(path, response.status, response.read())
        for line in _lines(response):
            if line.startswith(EVENT_PREFIX):
                event = json.loads(line[len(EVENT_PREFIX) :])
                if "error" in event:
                    raise _answer_error(path, response.status, line)
                yield event
    finally:
        connection.close()


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield lines as they come. Iterating over the response itself ends silently when it breaks."""
    pending = b""
    try:
        while data := response.read1():
            *lines, pending = (pending + data).split(b"\n")
            yield from lines
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(
            "the server went away in the middle of an answer",
            where="stream of events",
            expected="events until the answer's end",
            got=repr(error),
            hint="ask again; a watched server is back within seconds",
        ) from error


def _answer_error(path: str, status: int, body: bytes) -> ServerError:
    text = body.decode("utf-8", errors="replace").strip()
    if text.startswith(EVENT_PREFIX.decode()):
        text = text[len(EVENT_PREFIX) :].strip()
    return ServerError(
        "the server refused the request",
        where=path,
        expected="status 200",
        got=f"{status} {text}",
        hint="the server's own words above say what to change; its log may say more",
    )
