"""NVIDIA's own client, unmodified, against the real server: HTTP, gRPC unary, gRPC streams."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.triton.conftest import Served
from tests.triton.http_calls import call
from tests.triton.spelled_repository import PACKED_STREAMING, STREAMING, UNARY
from tests.triton.test_http import wait_until_idle
from tests.unit.triton.fake_pb_utils import Array, text_array
from tidemill.frontends.triton.server import TritonServer
from tidemill.text.tokenizer import Tokenizer

TIMEOUT_S = 20.0


def inputs_of(client: Any, arrays: dict[str, Array], binary: bool | None = None) -> list[Any]:
    inputs = []
    for name, array in arrays.items():
        tensor = client.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        if binary is None:
            tensor.set_data_from_numpy(array)
        else:
            tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


def text_arrays(*prompts: str, max_tokens: int = 64, **extra: Array) -> dict[str, Array]:
    lengths = np.full((len(prompts), 1), max_tokens, dtype=np.int32)
    return {"text_input": text_array(*prompts), "max_tokens": lengths, **extra}


def on() -> Array:
    return np.array([[True]])


@contextmanager
def grpc_stream(server: TritonServer) -> Iterator[tuple[Any, queue.Queue[tuple[Any, Any]]]]:
    """Open a stream; responses and errors arrive in the queue."""
    received: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = grpc_client.InferenceServerClient(server.endpoints.grpc_url)
    client.start_stream(callback=lambda result, error: received.put((result, error)))
    try:
        yield client, received
    finally:
        client.stop_stream(cancel_requests=True)
        client.close()


def take_until_final(received: queue.Queue[tuple[Any, Any]]) -> list[Any]:
    """Return the responses up to the one with the final flag."""
    results = []
    while True:
        result, error = received.get(timeout=TIMEOUT_S)
        assert error is None, str(error)
        results.append(result)
        if result.get_response().parameters["triton_final_response"].bool_param:
            return results


def text_of(result: Any) -> str:
    text = result.as_numpy("text_output")
    assert text.ndim == 1
    first = text[0]  # the client leaves text that came as JSON as it is
    return first if isinstance(first, str) else str(first.decode("utf-8"))


@pytest.mark.parametrize("binary", [True, False])
def test_http_client_gets_text_and_counts(served: Served, binary: bool) -> None:
    with http_client.InferenceServerClient(served.server.endpoints.http_address) as client:
        arrays = text_arrays("say >hi \U0001f40c", exclude_input_in_output=on())
        outputs = [
            http_client.InferRequestedOutput(name, binary_data=binary)
            for name in ("text_output", "num_output_tokens")
        ]
        inputs = inputs_of(http_client, arrays, binary)
        result = client.infer(UNARY, inputs, outputs=outputs, request_id="r1")
        assert text_of(result) == "hi \U0001f40c"
        assert result.as_numpy("num_output_tokens")[0][0] == 7
        assert result.as_numpy("finish_reason") is None
        assert result.get_response()["id"] == "r1"


def test_clients_agree_on_health_metadata_and_config(served: Served) -> None:
    with (
        http_client.InferenceServerClient(served.server.endpoints.http_address) as over_http,
        grpc_client.InferenceServerClient(served.server.endpoints.grpc_url) as over_grpc,
    ):
        for client in (over_http, over_grpc):
            assert client.is_server_live() and client.is_server_ready()
            assert client.is_model_ready(STREAMING)
        assert over_grpc.get_model_config(STREAMING).config.model_transaction_policy.decoupled
        assert over_http.get_model_metadata(UNARY)["name"] == UNARY


def test_grpc_unary_call_answers_whole(served: Served) -> None:
    with grpc_client.InferenceServerClient(served.server.endpoints.grpc_url) as client:
        result = client.infer(UNARY, inputs_of(grpc_client, text_arrays("a >b")))
        assert text_of(result) == "a >bb"


def test_grpc_stream_flags_the_last_piece_and_sends_nothing_after_it(served: Served) -> None:
    with grpc_stream(served.server) as (client, received):
        client.async_stream_infer(
            STREAMING,
            inputs_of(grpc_client, text_arrays("a >one two", stream=on())),
            request_id="s1",
            enable_empty_final_response=True,
        )
        results = take_until_final(received)
        assert "".join(text_of(result) for result in results) == "one two"
        assert {result.get_response().id for result in results} == {"s1"}
        assert results[-1].as_numpy("finish_reason")[0] == b"stop"
        with pytest.raises(queue.Empty):
            received.get(timeout=0.3)


def test_requests_interleaved_on_one_stream_are_told_apart_by_id(served: Served) -> None:
    texts = {f"id-{number}": f"text of number {number}" for number in range(8)}
    joined = dict.fromkeys(texts, "")
    with grpc_stream(served.server) as (client, received):
        for request_id, text in texts.items():
            inputs = inputs_of(grpc_client, text_arrays(f">{text}", stream=on()))
            client.async_stream_infer(STREAMING, inputs, request_id=request_id)
        num_open = len(texts)
        while num_open:
            result, error = received.get(timeout=TIMEOUT_S)
            assert error is None
            joined[result.get_response().id] += text_of(result)
            num_open -= result.get_response().parameters["triton_final_response"].bool_param
    assert joined == texts


def test_batch_comes_back_as_one_response_a_row(served: Served) -> None:
    with grpc_stream(served.server) as (client, received):
        arrays = text_arrays(">long answer", ">b", ">cc", exclude_input_in_output=on())
        arrays["exclude_input_in_output"] = np.array([[True]] * 3)
        client.async_stream_infer(STREAMING, inputs_of(grpc_client, arrays))
        results = take_until_final(received)
        rows = {result.as_numpy("batch_index")[0][0]: text_of(result) for result in results}
        assert len(results) == 3
        assert rows == {0: "long answer", 1: "b", 2: "cc"}


def test_unknown_input_is_an_error_over_grpc(served: Served) -> None:
    with grpc_client.InferenceServerClient(served.server.endpoints.grpc_url) as client:
        arrays = text_arrays("x", tempratur=np.array([[0.5]], dtype=np.float32))
        with pytest.raises(InferenceServerException, match="tempratur"):
            client.infer(UNARY, inputs_of(grpc_client, arrays))


def test_refusal_keeps_its_code_over_grpc(served: Served) -> None:
    with grpc_client.InferenceServerClient(served.server.endpoints.grpc_url) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(UNARY, inputs_of(grpc_client, text_arrays("x" * 2049)))
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert "2048" in caught.value.message()


def test_error_on_a_stream_leaves_the_stream_usable(served: Served) -> None:
    with grpc_stream(served.server) as (client, received):
        client.async_stream_infer(STREAMING, inputs_of(grpc_client, text_arrays("x" * 2049)))
        result, error = received.get(timeout=TIMEOUT_S)
        assert result is None and "2048" in str(error)
        client.async_stream_infer(STREAMING, inputs_of(grpc_client, text_arrays(">ok")))
        assert text_of(take_until_final(received)[0]).endswith("ok")


def test_cancelled_stream_frees_the_engine(served: Served) -> None:
    arrays = text_arrays("for ever", max_tokens=2000, stream=on())
    with grpc_stream(served.server) as (client, received):
        client.async_stream_infer(STREAMING, inputs_of(grpc_client, arrays))
        received.get(timeout=TIMEOUT_S)
    start = time.monotonic()
    wait_until_idle(served)
    assert time.monotonic() - start < 2.0


def test_stop_tensor_ends_a_running_request_of_the_same_id(served: Served) -> None:
    arrays = text_arrays("for ever", max_tokens=2000, stream=on())
    with grpc_stream(served.server) as (client, received):
        client.async_stream_infer(STREAMING, inputs_of(grpc_client, arrays), request_id="long")
        received.get(timeout=TIMEOUT_S)
        stop = {**text_arrays("", max_tokens=0), "stop": on()}
        client.async_stream_infer(STREAMING, inputs_of(grpc_client, stop), request_id="long")
        finals: list[Any] = []
        while len(finals) < 2:
            result, error = received.get(timeout=TIMEOUT_S)
            assert error is None
            if result.get_response().parameters["triton_final_response"].bool_param:
                finals.append(result)
    reasons = [result.as_numpy("finish_reason") for result in finals]
    assert sorted(reason is None for reason in reasons) == [False, True]
    assert [reason[0] for reason in reasons if reason is not None] == [b"cancelled"]


def test_packed_stream_adds_up_to_the_packed_answers(served: Served) -> None:
    tokenizer = Tokenizer.from_directory(served.spelled_engine)
    prompts = [tokenizer.encode(text) for text in (">abc", "x >d", "yy>ef")]
    arrays = {
        "input_ids": np.array([token for prompt in prompts for token in prompt], dtype=np.int32),
        "input_lengths": np.array([len(prompt) for prompt in prompts], dtype=np.int32),
        "streaming": np.array([True]),
    }
    rows: list[list[int]] = [[], [], []]
    with grpc_stream(served.server) as (client, received):
        client.async_stream_infer(PACKED_STREAMING, inputs_of(grpc_client, arrays))
        for result in take_until_final(received):
            lengths = result.as_numpy("output_lengths")
            pieces = np.split(result.as_numpy("output_ids"), np.cumsum(lengths)[:-1])
            for row, piece in zip(rows, pieces, strict=True):
                row.extend(piece.tolist())
    assert [tokenizer.decode(row) for row in rows] == ["abc", "d", "ef"]


def test_requests_are_counted_in_the_servers_metrics(served: Served) -> None:
    status, text = call(served.server.endpoints.metrics_url)
    assert status == 200
    assert f'nv_inference_request_success{{model="{UNARY}",version="1"}}' in text
