"""Many streams of one model at once from one thread, as cheaply as Python can have them.

A load generator that shares the server's cores takes from what it measures: these two write whole
requests, keep what comes until every stream has ended, and only then look into it. Both give back
each stream's answer as parsed events or messages.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import grpc
from tritonclient.grpc import service_pb2

RECEIVE_BYTES = 1 << 16
LAST_CHUNK = b"0\r\n\r\n"
EVENT_PREFIX = b"data:"
STREAM_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"

Event = Mapping[str, Any]


def open_stream(url: str, model: str, payload: Event) -> socket.socket:
    """Post one request for a stream of events; return the connection."""
    address, body = urlsplit(url), json.dumps(payload).encode()
    head = (
        f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    host, _, port = address.netloc.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(head.encode() + body)
    return connection


def http_streams(url: str, model: str, payloads: Iterable[Event]) -> list[Event]:
    """Run all requests at once over HTTP; return the events of all."""
    received: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        for payload in payloads:
            selector.register(open_stream(url, model, payload), selectors.EVENT_READ, [])
        while selector.get_map():
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(RECEIVE_BYTES)
                key.data.append(data)
                if not data or data.endswith(LAST_CHUNK):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    received.append(b"".join(key.data))
    return [event for answer in received for event in parse_events(answer)]


def parse_events(answer: bytes) -> list[Event]:
    """Return the events of a whole answer."""
    assert answer.startswith(b"HTTP/1.1 200"), answer
    lines = answer.split(b"\n")
    return [
        json.loads(line[len(EVENT_PREFIX) :]) for line in lines if line.startswith(EVENT_PREFIX)
    ]


def first_event_s(url: str, model: str, payload: Event) -> float:
    """Run one stream to its end; return the time to its first event."""
    start, first_s, tail = time.perf_counter(), 0.0, b""
    with open_stream(url, model, payload) as connection:
        while data := connection.recv(RECEIVE_BYTES):
            tail += data
            if not first_s and EVENT_PREFIX in tail:
                first_s = time.perf_counter() - start
            if data.endswith(LAST_CHUNK):
                break
    return first_s


def grpc_streams(address: str, requests: Sequence[bytes]) -> list[dict[str, bytes]]:
    """Run all serialised requests over one gRPC stream; return each message's outputs by name."""
    with grpc.insecure_channel(address) as channel:
        messages = list(channel.stream_stream(STREAM_METHOD)(iter(requests)))
    outputs = []
    for message in messages:
        answer = service_pb2.ModelStreamInferResponse.FromString(message)
        assert not answer.error_message, answer.error_message
        names = [output.name for output in answer.infer_response.outputs]
        outputs.append(dict(zip(names, answer.infer_response.raw_output_contents, strict=True)))
    return outputs
