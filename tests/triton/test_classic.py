"""The five classic models and the llmapi model on the real server, streamed or not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
from tritonclient.utils import InferenceServerException

from tests.triton.conftest import REPOSITORY_ROOT
from tests.triton.event_stream import stream_generate
from tests.triton.http_calls import call
from tests.triton.spelled_repository import (
    CLASSIC_UNARY,
    LLMAPI,
    LLMAPI_UNARY,
    STREAMING,
    deploy_spelled_classics,
    deploy_spelled_text,
    write_spelled_engine,
)
from tests.triton.test_tritonclient import inputs_of, text_arrays
from tidemill.base.errors import ServerError
from tidemill.frontends.triton.serve_request import ServeRequest
from tidemill.frontends.triton.server import TritonServer
from tidemill.text.text_length import MAX_SIDE_CHARACTERS
from tidemill.text.tokenizer import Tokenizer

ENSEMBLE, BLS = "ensemble", "tensorrt_llm_bls"
CORPUS = [
    "hello",
    " two  leading spaces",
    "emoji \U0001f40c\U0001f469\u200d\U0001f680!",
    "\u6f6e\u6c50\u78e8\u574a\uff0c\u8f6e\u8f6c",
    "e\u0301 combining \u0915\u094d\u0937",
    "\n\ttabs and lines\r\n",
    "",
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spelled_engine(tmp_path_factory.mktemp("classic") / "engine")


@pytest.fixture(scope="module")
def server(engine: Path) -> Iterator[TritonServer]:
    repository = engine.parent / "models"
    deploy_spelled_classics(engine, repository)
    deploy_spelled_text(engine, repository)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY_ROOT))
        with TritonServer(ServeRequest(repository, 0, 0, 0)) as server:
            yield server


def generate(server: TritonServer, model: str, **payload: Any) -> tuple[int, Any]:
    return call(f"{server.endpoints.http_url}/v2/models/{model}/generate", payload)


def text(server: TritonServer, model: str, prompt: str, **extra: Any) -> str:
    status, answer = generate(server, model, text_input=prompt, max_tokens=64, **extra)
    assert status == 200, answer
    return str(answer["text_output"])


def stream(server: TritonServer, model: str, prompt: str, **extra: Any) -> list[dict[str, Any]]:
    payload = {"text_input": prompt, "max_tokens": 64, "stream": True, **extra}
    return list(stream_generate(server.endpoints.http_url, model, payload))


def joined(events: list[dict[str, Any]]) -> str:
    return "".join(event["text_output"] for event in events)


@pytest.mark.parametrize("words", CORPUS, ids=ascii)
def test_every_model_gives_the_same_text_whole_or_streamed(
    server: TritonServer, words: str
) -> None:
    prompt = f"say  {words}</s> >{words}"
    for model in (STREAMING, ENSEMBLE, BLS):
        assert text(server, model, prompt) == prompt + words
        assert text(server, model, prompt, exclude_input_in_output=True) == words
        assert joined(stream(server, model, prompt)) == words
    for model in (f"{CLASSIC_UNARY}_ensemble", f"{CLASSIC_UNARY}_tensorrt_llm_bls"):
        assert text(server, model, prompt) == prompt + words
    wish = {"text_input": prompt, "sampling_param_max_tokens": 64}
    for model in (LLMAPI, LLMAPI_UNARY):
        assert generate(server, model, **wish)[1]["text_output"] == prompt + words
    url = server.endpoints.http_url
    pieces = list(stream_generate(url, LLMAPI, {**wish, "streaming": True}))
    assert pieces[-1]["text_output"] == words


@pytest.mark.parametrize("model", [STREAMING, ENSEMBLE, BLS])
def test_stop_words_end_the_text_of_every_model_before_them(
    server: TritonServer, model: str
) -> None:
    prompt, wishes = ">one two\U0001f40cthree", {"stop_words": ["none", "o\U0001f40ct"]}
    assert text(server, model, prompt, exclude_input_in_output=True, **wishes) == "one tw"
    assert joined(stream(server, model, prompt, **wishes)) == "one tw"
    assert text(server, model, ">ab", stop_words=[""], bad_words=[""]) == ">abab"


def test_pieces_of_a_stream_are_whole_characters_in_the_classic_chain(
    server: TritonServer,
) -> None:
    events = stream(server, ENSEMBLE, ">\U0001f40c\u6f6e\U0001f40c", return_num_output_tokens=True)
    assert [event["text_output"] for event in events if event["text_output"]] == [
        "\U0001f40c",
        "\u6f6e",
        "\U0001f40c",
    ]
    assert sum(event["num_output_tokens"] for event in events) == 11


def test_preprocessing_and_postprocessing_answer_alone(server: TritonServer, engine: Path) -> None:
    tokenizer = Tokenizer.from_directory(engine)
    prompt = "caf\u00e9 \u6f6e"
    status, answer = generate(
        server, "preprocessing", QUERY=prompt, REQUEST_OUTPUT_LEN=7, STOP_WORDS_DICT=["ab", "c"]
    )
    ids = tokenizer.encode(prompt)
    assert status == 200 and answer["INPUT_ID"] == ids
    assert answer["REQUEST_INPUT_LEN"] == len(ids) and answer["REQUEST_OUTPUT_LEN"] == 7
    assert answer["STOP_WORDS_IDS"] == [*tokenizer.encode("abc"), 2, 3, -1]
    assert answer["OUT_END_ID"] == tokenizer.eos_token_id
    words = {"BAD_WORDS_DICT": ["a" * MAX_SIDE_CHARACTERS, "b"]}
    status, answer = generate(server, "preprocessing", QUERY="x", REQUEST_OUTPUT_LEN=7, **words)
    assert status == 400 and "BAD_WORDS_DICT" in answer["error"]
    status, answer = generate(
        server, "postprocessing", TOKENS_BATCH=[*ids, 0, 0], SEQUENCE_LENGTH=len(ids)
    )
    assert (status, answer["OUTPUT"]) == (200, prompt)


def test_tensorrt_llm_alone_gives_prompt_and_answer_as_tokens(
    server: TritonServer, engine: Path
) -> None:
    tokenizer = Tokenizer.from_directory(engine)
    ids, answer_ids = tokenizer.encode(">ok"), tokenizer.encode("ok")
    wish: dict[str, Any] = {"input_ids": ids, "input_lengths": len(ids), "request_output_len": 9}
    wish["end_id"] = tokenizer.eos_token_id
    status, answer = generate(server, "tensorrt_llm", **wish)
    assert (status, answer["output_ids"]) == (200, ids + answer_ids)
    assert answer["sequence_length"] == 5
    _, answer = generate(server, "tensorrt_llm", **wish, exclude_input_in_output=True)
    assert answer["output_ids"] == answer_ids


def test_batch_and_sequences_come_as_responses_of_their_own(server: TritonServer) -> None:
    payload = {"text_input": [">one", ">two"], "max_tokens": [9, 9], "stream": [True, True]}
    for model in (ENSEMBLE, BLS, STREAMING):
        events = list(stream_generate(server.endpoints.http_url, model, payload))
        texts = ["", ""]
        for event in events:
            texts[event["batch_index"]] += event["text_output"]
        assert texts == ["one", "two"]
        events = stream(server, model, ">ab", num_return_sequences=3)
        texts = ["", "", ""]
        for event in events:
            assert "batch_index" not in event
            texts[event["sequence_index"]] += event["text_output"]
        assert texts == ["ab"] * 3


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"stream": True}, "Streaming is only supported if model is deployed using decoupled"),
        ({"num_return_sequences": 2}, "num_return_sequences > 1 requires"),
        ({"lora_task_id": 3}, "lora_task_id"),
        ({"lora_config": [1, 2, 3]}, "lora_config"),
    ],
)
def test_what_a_unary_chain_cannot_do_is_refused_through_the_ensemble(
    server: TritonServer, extra: dict[str, Any], words: str
) -> None:
    for name in ("ensemble", "tensorrt_llm_bls"):
        model = f"{CLASSIC_UNARY}_{name}"
        status, answer = generate(server, model, text_input=">x", max_tokens=4, **extra)
        assert status == 400 and words in answer["error"]


def test_bls_refuses_in_upstreams_words(server: TritonServer) -> None:
    status, answer = generate(server, BLS, text_input=">x", max_tokens=0)
    assert status == 400 and "max_tokens must be a single value > 0" in answer["error"]


def test_final_flag_is_on_the_last_piece_of_every_text_model(server: TritonServer) -> None:
    for model in (ENSEMBLE, BLS):
        results: list[Any] = []
        client = grpc_client.InferenceServerClient(server.endpoints.grpc_url)
        arrived = threading.Semaphore(0)

        def take(
            result: Any, error: Any, results: list[Any] = results, done: Any = arrived
        ) -> None:
            results.append(error or result)
            done.release()

        client.start_stream(callback=take)
        arrays = text_arrays(">abc", stream=np.array([[True]]))
        client.async_stream_infer(model, inputs_of(grpc_client, arrays))
        for _ in range(4):
            assert arrived.acquire(timeout=20)
            final = results[-1].get_response().parameters["triton_final_response"].bool_param
            if final:
                break
        client.stop_stream()
        client.close()
        pieces = [result.as_numpy("text_output") for result in results]
        assert final and all(piece.ndim == 1 for piece in pieces)
        assert b"".join(piece[0] for piece in pieces) == b"abc"


@pytest.mark.parametrize(
    ("model", "stopper"), [(ENSEMBLE, "tensorrt_llm"), (BLS, BLS), ("tensorrt_llm", "tensorrt_llm")]
)
def test_stop_by_id_ends_a_running_request_normally(
    server: TritonServer, model: str, stopper: str
) -> None:
    wish: dict[str, Any] = {"text_input": "no end", "max_tokens": 2000, "stream": True}
    if model == "tensorrt_llm":
        wish = {"input_ids": [5], "input_lengths": 1, "request_output_len": 2000, "streaming": True}
    events = stream_generate(server.endpoints.http_url, model, {**wish, "id": f"run-{model}"})
    next(events)
    zeros = {"input_ids": [1], "input_lengths": 0, "request_output_len": 0}
    if stopper == BLS:
        zeros = {"text_input": "", "max_tokens": 0}
    start = time.monotonic()
    status, answer = generate(server, stopper, id=f"run-{model}", stop=True, **zeros)
    assert status == 200 and "text_output" not in answer and "output_ids" not in answer
    rest = list(events)
    assert len(rest) < 1900 and time.monotonic() - start < 10


def test_llmapi_streams_are_cumulative(server: TritonServer) -> None:
    payload = {
        "text_input": ">abc",
        "sampling_param_max_tokens": 9,
        "streaming": True,
        "return_finish_reason": True,
    }
    events = list(stream_generate(server.endpoints.http_url, LLMAPI, payload))
    assert [event["text_output"] for event in events][-1] == "abc"
    assert events[0]["text_output"] == "a" and events[-1]["finish_reason"] == "stop"


def test_llmapi_answers_once_and_echoes_unless_told_not_to(server: TritonServer) -> None:
    wish = {"text_input": ">ok", "sampling_param_max_tokens": 9}
    assert generate(server, LLMAPI_UNARY, **wish)[1]["text_output"] == ">okok"
    wish["sampling_param_exclude_input_from_output"] = True
    assert generate(server, LLMAPI_UNARY, **wish)[1]["text_output"] == "ok"
    status, answer = generate(server, LLMAPI_UNARY, **wish, lora_id=1)
    assert status == 400 and answer["error"].startswith("Error generating request:")


def test_llmapi_stop_answers_both_requests_with_cancelled(server: TritonServer) -> None:
    payload = {"text_input": "on and on", "sampling_param_max_tokens": 2000, "streaming": True}
    events = stream_generate(server.endpoints.http_url, LLMAPI, {**payload, "id": "l1"})
    next(events)
    with grpc_client.InferenceServerClient(server.endpoints.grpc_url) as client:
        arrays = {"text_input": np.array([b""], dtype=np.object_), "stop": np.array([True])}
        with pytest.raises(InferenceServerException, match="cancelled by client") as caught:
            client.infer(LLMAPI_UNARY, inputs_of(grpc_client, arrays), request_id="none")
    assert caught.value.status() == "StatusCode.CANCELLED"
    generate(server, LLMAPI, id="l1", text_input="", stop=True)
    with pytest.raises(ServerError, match="Request cancelled by client"):
        list(events)
