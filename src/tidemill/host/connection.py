"""Messages over a stream socket: four bytes of length, little-endian, then msgpack.

`Framer` turns bytes that arrive in any pieces into messages. `encode` is its inverse. Knows
nothing of what the messages mean.
"""

from __future__ import annotations

import struct

import msgspec

from tidemill.base.errors import HostError
from tidemill.host.messages import PROTOCOL_VERSION, Hello, Message

MAX_FRAME_BYTES = 256 * 2**20
_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return the frame of one message."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Framer:
    """Collects received bytes and gives back whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def push(self, data: bytes) -> list[Message]:
        """Take bytes and return the messages that they complete.

        Raises: HostError when the bytes are no frames of this protocol.
        """
        buffer = self._buffer
        buffer += data
        messages: list[Message] = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (num_bytes,) = _LENGTH.unpack_from(buffer, start)
            if num_bytes > MAX_FRAME_BYTES:
                raise _foreign_bytes(f"a frame of {num_bytes} bytes")
            body_start = start + _LENGTH.size
            if len(buffer) - body_start < num_bytes:
                break
            start = body_start + num_bytes
            try:
                messages.append(_decoder.decode(memoryview(buffer)[body_start:start]))
            except msgspec.MsgspecError as error:
                raise _foreign_bytes(str(error)) from error
        if start:
            del buffer[:start]
        return messages


def check_hello(message: Message) -> None:
    """Refuse a peer of another protocol version.

    Raises: HostError.
    """
    if isinstance(message, Hello) and message.protocol_version == PROTOCOL_VERSION:
        return
    got = f"version {message.protocol_version}" if isinstance(message, Hello) else repr(message)
    raise HostError(
        "the other side of the host's socket speaks another protocol",
        where="the host's socket",
        expected=f"version {PROTOCOL_VERSION}",
        got=got,
        hint="stop the old tidemill processes, then start again",
    )


def _foreign_bytes(got: str) -> HostError:
    return HostError(
        "what arrived on the host's socket is no message",
        where="the host's socket",
        expected=f"frames of protocol version {PROTOCOL_VERSION}",
        got=got,
        hint="nothing else may use that socket; restart the host",
    )
