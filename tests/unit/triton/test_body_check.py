"""Bodies before tritonserver sees them: unpacked, bounded, written anew."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from tidemill.frontends.triton.body_check import (
    BodyBounds,
    CheckedBody,
    Envelope,
    RefusedBodyError,
    check_body,
)

BOUNDS = BodyBounds(max_bytes=4096, max_json_depth=8)
GENERATE = Envelope("", (), is_infer=False)
INFER = Envelope("", (), is_infer=True)


def check(body: bytes, envelope: Envelope = GENERATE) -> CheckedBody:
    return check_body(body, envelope, BOUNDS)


def tensor(shape: Any, **more: Any) -> dict[str, Any]:
    return {"name": "n", "datatype": "INT32", "shape": shape, **more}


def infer(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_packed_bodies_are_unpacked_up_to_the_bound(encoding: str, pack: Any) -> None:
    envelope = Envelope(encoding, (), is_infer=False)
    assert check(pack(b"[1]"), envelope).data == b"[1]"
    assert len(check(pack(b" " * 4096), envelope).data) == 4096
    for body, status in (
        (pack(b" " * 4097), 413),
        (pack(b" " * 10_000_000), 413),
        (b"no such thing", 400),
        (pack(b"[1]")[:-3], 400),
        (pack(b"[1]") + b"x", 400),
    ):
        with pytest.raises(RefusedBodyError) as caught:
            check(body, envelope)
        assert caught.value.status == status


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_other_packings_are_refused(encoding: str) -> None:
    with pytest.raises(RefusedBodyError) as caught:
        check(b"x", Envelope(encoding, (), is_infer=False))
    assert caught.value.status == 415


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (infer(tensor([1, 10**12], data=[4])), "more elements"),
        (infer(tensor([3], data=[4])), "more elements"),
        (infer(tensor([2**40])), "more elements"),
        (b'{"inputs": [{"n": 1, "sh\\u0061pe": [99999], "data": [1]}]}', "more elements"),
        (b'{"inputs": [{"shape": [1], "shape": [99999], "data": [1]}]}', "more elements"),
        (infer(tensor([1], data=[4]), outputs=[{"parameters": {"classification": 1}}]), "dies"),
        (infer(tensor("1", data=[4])), "cannot be read"),
        (b'{"inputs": [{"shape": [1], "data": [NaN]}]}', "cannot be read"),
        (b"[]", "cannot be read"),
        (b"{", "cannot be read"),
    ],
)
def test_inference_request_that_ends_the_server_or_is_none_is_refused(
    body: bytes, words: str
) -> None:
    with pytest.raises(RefusedBodyError, match=words) as caught:
        check(body, INFER)
    assert caught.value.status == 400


def test_inference_request_goes_on_with_all_that_it_said_and_nothing_twice() -> None:
    whole = {
        "id": "7",
        "parameters": {"binary_data_output": True, "priority": 2},
        "inputs": [
            tensor([2, 2], data=[[1, 2], [3, 4]]),
            tensor([], data=[1]),
            tensor([10**9], parameters={"shared_memory_region": "r", "shared_memory_offset": 4}),
        ],
        "outputs": [{"name": "o", "parameters": {"binary_data": False, "classification": 0}}],
    }
    assert json.loads(check(json.dumps(whole).encode(), INFER).data) == whole
    twice = b'{"inputs": [{"shape": [999], "shape": [1], "data": [1]}]}'
    assert check(twice, INFER).data == b'{"inputs":[{"shape":[1],"data":[1]}]}'


def test_tensors_behind_the_json_stay_and_its_new_length_is_told() -> None:
    text = infer(tensor([1], parameters={"binary_data_size": 4}))
    checked = check(text + b"\x00[[[", Envelope("", (str(len(text)),), is_infer=True))
    assert checked.header_length is not None
    assert json.loads(checked.data[: checked.header_length]) == json.loads(text)
    assert checked.data[checked.header_length :] == b"\x00[[["
