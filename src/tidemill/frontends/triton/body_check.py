"""One request's body on its way through the front door: unpacked, bounded, made safe.

In: a body as it came, and what its headers say of it. Out: what tritonserver is given. Everything
here runs outside of the door's event loop when it is long, so that no body delays other requests.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from tidemill.frontends.triton.infer_bounds import RefusedRequestError, rewrite_infer
from tidemill.frontends.triton.json_bounds import find_excess

HEADER_LENGTH = "Inference-Header-Content-Length"
BAD_REQUEST, TOO_LARGE, UNSUPPORTED_TYPE = 400, 413, 415
# zlib's window bits: with gzip's header, with zlib's.
ENCODING_TO_BITS = {"gzip": 31, "deflate": 15}


class RefusedBodyError(Exception):
    """A body that does not pass: the status and the words of the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Envelope:
    """What the headers say of a body; `is_infer`: tensors may follow its JSON."""

    encoding: str
    header_lengths: tuple[str, ...]
    is_infer: bool


@dataclass(frozen=True)
class BodyBounds:
    """How large and how deep bodies may be. Units: bytes when unpacked, levels of JSON."""

    max_bytes: int
    max_json_depth: int


@dataclass(frozen=True)
class CheckedBody:
    """What goes on to tritonserver; `header_length` is the length of its JSON part, if it says."""

    data: bytes
    header_length: int | None = None


def check_body(body: bytes, envelope: Envelope, bounds: BodyBounds) -> CheckedBody:
    """Unpack and check a body.

    Raises: RefusedBodyError.
    """
    body = unpack(body, envelope.encoding, bounds.max_bytes)
    if not body:
        return CheckedBody(body)
    # Only infer has tensors behind its JSON; everywhere else Triton parses the whole body.
    num_json = len(body)
    if envelope.is_infer and envelope.header_lengths:
        num_json = read_header_length(envelope.header_lengths, len(body))
    excess = find_excess(body[:num_json], bounds.max_json_depth)
    if excess is not None:
        raise RefusedBodyError(BAD_REQUEST, excess)
    if not envelope.is_infer:
        return CheckedBody(body)
    try:
        rewritten = rewrite_infer(body[:num_json], len(body))
    except RefusedRequestError as error:
        raise RefusedBodyError(BAD_REQUEST, str(error)) from error
    header_length = len(rewritten) if envelope.header_lengths else None
    return CheckedBody(rewritten + body[num_json:], header_length)


def unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return a body unpacked, never more than is allowed.

    Raises: RefusedBodyError when it is larger, damaged, or packed in another way.
    """
    if encoding in ("", "identity") or not body:
        return body
    bits = ENCODING_TO_BITS.get(encoding)
    if bits is None:
        raise RefusedBodyError(UNSUPPORTED_TYPE, f"Content-Encoding {encoding}: gzip or deflate")
    unpacker = zlib.decompressobj(bits)
    try:
        unpacked = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RefusedBodyError(BAD_REQUEST, f"the {encoding} body is damaged: {error}") from error
    if len(unpacked) > max_bytes:
        raise RefusedBodyError(TOO_LARGE, f"the body has more than {max_bytes} bytes unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise RefusedBodyError(BAD_REQUEST, f"the {encoding} body is cut off or goes on")
    return unpacked


def read_header_length(lengths: tuple[str, ...], num_bytes: int) -> int:
    """Return how much of a body is JSON.

    Raises: RefusedBodyError when the header says it twice or says nonsense.
    """
    if len(lengths) != 1 or not lengths[0].isdecimal() or int(lengths[0]) > num_bytes:
        text = f"{HEADER_LENGTH}: {', '.join(lengths)} of {num_bytes} bytes"
        raise RefusedBodyError(BAD_REQUEST, text)
    return int(lengths[0])
