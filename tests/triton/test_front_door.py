"""The front door before the real server: what it refuses, does not change, and who may enter."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from tests.triton.conftest import Served
from tests.triton.event_stream import stream_generate
from tests.triton.http_calls import call, infer_body
from tests.triton.serve_process import ServeProcess, serving, wait_for
from tests.triton.spelled_repository import (
    STREAMING,
    UNARY,
    deploy_spelled,
    write_spelled_engine,
)
from tidemill.frontends.triton.door_config import DoorConfig
from tidemill.frontends.triton.front_door import DoorAddress, FrontDoor

MAX_BODY_BYTES = 1 << 20


@pytest.fixture(scope="module")
def door_url(served: Served) -> Iterator[str]:
    """A door before the server that all tests here share."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = DoorConfig(max_body_bytes=MAX_BODY_BYTES, max_json_depth=16)
    upstream = served.server.endpoints.http_url
    with FrontDoor(DoorAddress("127.0.0.1", port), upstream, config, lambda: True, 5.0):
        yield f"http://127.0.0.1:{port}"


def generate_url(url: str, model: str = UNARY) -> str:
    return f"{url}/v2/models/{model}/generate"


def test_answers_are_the_servers_own(served: Served, door_url: str) -> None:
    body = {"text_input": ">through the door", "max_tokens": 40}
    direct = served.server.endpoints.http_url
    assert call(generate_url(door_url), body) == call(generate_url(direct), body)
    for path in ("/v2", f"/v2/models/{UNARY}", "/v2/health/ready", "/v2/models/nope"):
        assert call(door_url + path) == call(direct + path)
    bad = {"text_input": 3, "max_tokens": 4}
    assert call(generate_url(door_url), bad) == call(generate_url(direct), bad)


def test_stream_comes_in_pieces_and_not_at_its_end(door_url: str) -> None:
    payload = {"text_input": "no end", "max_tokens": 200, "stream": True}
    times = [time.monotonic() for _ in stream_generate(door_url, STREAMING, payload)]
    # The engine that spells takes 2 ms for a token.
    assert len(times) == 200 and times[-1] - times[0] > 0.2


def test_nvidias_client_with_binary_tensors_and_compression(door_url: str) -> None:
    with http_client.InferenceServerClient(urlsplit(door_url).netloc) as client:
        text = http_client.InferInput("text_input", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[b">binary"]], dtype=np.object_))
        tokens = http_client.InferInput("max_tokens", [1, 1], "INT32")
        tokens.set_data_from_numpy(np.array([[20]], dtype=np.int32))
        for algorithm in (None, "gzip", "deflate"):
            answer = client.infer(
                UNARY,
                [text, tokens],
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            assert b"binary" in answer.as_numpy("text_output")[0]


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nested_body_is_refused_and_the_server_lives(door_url: str, opening: bytes) -> None:
    body = b'{"text_input":' + opening * 200_000
    status, answer = post(generate_url(door_url), body[:MAX_BODY_BYTES])
    assert status == 400 and b"nests deeper than 16" in answer
    assert call(generate_url(door_url), {"text_input": ">ok", "max_tokens": 4})[0] == 200


def test_header_that_hides_json_behind_tensors_is_seen_through(door_url: str) -> None:
    deep = b'{"text_input":' + b"[" * 1000
    header = {"Inference-Header-Content-Length": "2"}
    assert post(generate_url(door_url), deep, header)[0] == 400
    infer = f"{door_url}/v2/models/{UNARY}/infer"
    for length in ("-1", "99999999", "2, 3", "x"):
        header = {"Inference-Header-Content-Length": length}
        assert post(infer, deep, header)[0] == 400


@pytest.mark.parametrize("is_packed", [False, True])
def test_body_over_the_bound_is_refused_packed_or_not(door_url: str, is_packed: bool) -> None:
    body = json.dumps({"text_input": "a" * (MAX_BODY_BYTES + 1), "max_tokens": 1}).encode()
    headers = {"Content-Encoding": "gzip"} if is_packed else {}
    data = gzip.compress(body) if is_packed else body
    assert post(generate_url(door_url), data, headers)[0] == 413


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": [{**infer_body("x", 4)["inputs"][1], "shape": [1, 10**12]}]}, b"more elements"),
        ({"outputs": [{"name": "text_output", "parameters": {"classification": 1}}]}, b"dies"),
    ],
    ids=["giant shape", "classification"],
)
def test_inference_requests_that_end_the_server_do_not_reach_it(
    served: Served, door_url: str, change: dict[str, Any], words: bytes
) -> None:
    body = json.dumps({**infer_body(">ok", 4), **change}).encode()
    status, answer = post(f"{door_url}/v2/models/{UNARY}/infer", body)
    assert status == 400 and words in answer
    assert served.server.wait(0.1) is None


def test_hundred_thousand_members_delay_nobody(door_url: str) -> None:
    many = dict.fromkeys(map(str, range(50_000)), 1)
    body = json.dumps({"text_input": ">ok", "max_tokens": 4, **many})
    start = time.monotonic()
    status, answer = post(generate_url(door_url), body.encode())
    assert status == 400 and b"members" in answer and time.monotonic() - start < 5.0
    assert call(generate_url(door_url), {"text_input": ">ok", "max_tokens": 4})[0] == 200


def test_only_tritons_own_interface_is_behind_the_door(door_url: str) -> None:
    assert call(f"{door_url}/metrics")[0] == 404
    assert call(f"{door_url}/v2/repository/index", {})[0] == 403


def test_client_that_leaves_cancels_its_request(served: Served, door_url: str) -> None:
    stream = stream_generate(
        door_url, STREAMING, {"text_input": "no end", "max_tokens": 4000, "stream": True}
    )
    next(stream)
    stream.close()
    metrics = served.server.endpoints.metrics_url

    def cancelled() -> bool:
        with urllib.request.urlopen(metrics, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return any(
            line.startswith("tidemill_requests_in_flight")
            and f'"{STREAMING}"' in line
            and line.endswith(" 0")
            for line in lines
        )

    assert wait_for(cancelled, "the end of the request", 5.0) < 5.0


def post(url: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    try:
        connection.request("POST", parts.path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServeProcess, Path]]:
    """`tidemill serve` with keys and a certificate."""
    directory = tmp_path_factory.mktemp("guarded")
    deploy_spelled(write_spelled_engine(directory / "engine"), directory / "models")
    (directory / "keys").write_text("first-key\nsecond-key\n")
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {cert} -days 2"
        " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1",
        shell=True,
        check=True,
        capture_output=True,
    )
    flags = ("--api_key_file", str(directory / "keys"), "--tls_cert", str(cert))
    with serving(directory / "models", *flags, "--tls_key", str(key)) as serve:
        yield serve, cert


@pytest.mark.slow  # starts a real server of its own
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer first-key"}, 200),
        ({"X-API-Key": "second-key"}, 200),
    ],
)
def test_keys_open_the_door_over_tls(
    guarded: tuple[ServeProcess, Path], headers: dict[str, str], status: int
) -> None:
    serve, cert = guarded
    context = ssl.create_default_context(cafile=cert)
    address = urlsplit(serve.http_url).netloc
    connection = http.client.HTTPSConnection(address, timeout=20, context=context)
    try:
        connection.request("GET", "/v2/health/ready")
        ready = connection.getresponse()
        assert (ready.status, ready.read()) == (200, b"")
        body = json.dumps(infer_body(">ok", 4))
        connection.request("POST", f"/v2/models/{UNARY}/infer", body, headers)
        response = connection.getresponse()
        assert response.status == status, response.read()
    finally:
        connection.close()


@pytest.mark.slow  # starts a real server of its own
def test_grpc_needs_the_first_key_and_the_certificate(
    guarded: tuple[ServeProcess, Path],
) -> None:
    serve, cert = guarded
    with grpc_client.InferenceServerClient(
        serve.grpc_url, ssl=True, root_certificates=str(cert)
    ) as client:
        assert client.is_server_ready()
        with pytest.raises(grpc_client.InferenceServerException, match="restricted"):
            client.get_model_metadata(UNARY)
        headers = {"triton-grpc-protocol-api-key": "first-key"}
        assert client.get_model_metadata(UNARY, headers=headers).name == UNARY
