"""Requests as the public clients of this contract send them, against upstream's repositories.

Their shapes, types and requested outputs, in our own words: inflight_batcher_llm_client.py,
end_to_end_grpc_client.py, the OpenAI front end of Triton, litellm.
"""

from __future__ import annotations

import queue
import time
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
from tritonclient.utils import InferenceServerException

from tests.triton.conftest import Existing
from tests.triton.event_stream import stream_generate
from tests.triton.http_calls import call
from tests.triton.test_tritonclient import TIMEOUT_S, grpc_stream, inputs_of, take_until_final
from tests.unit.triton.fake_pb_utils import Array
from tidemill.frontends.triton.classic_tensors import PERF_OUTPUTS
from tidemill.text.tokenizer import Tokenizer

PROMPTS = ["The tide turns", "A mill needs"]
ENDS_SOON = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
PERF = [tensor.name for tensor in PERF_OUTPUTS]
COUNTS = ["num_input_tokens", "num_output_tokens"]
TOKENS = ["output_ids", "sequence_length"]
LOG_PROBS = ["cum_log_probs", "output_log_probs"]
LOGITS = ["context_logits", "generation_logits"]


def column(*values: Any, dtype: Any = np.int32) -> Array:
    return np.array(values, dtype=dtype).reshape(-1, 1)


def flag(value: bool = True) -> Array:
    return np.array([[value]])


def texts(rows: list[list[str]]) -> Array:
    return np.array([[word.encode() for word in row] for row in rows], dtype=np.object_)


@pytest.fixture(scope="module")
def tokenizer(existing: Existing) -> Tokenizer:
    return Tokenizer.from_directory(existing.engine)


def core_arrays(prompt: list[int], length: int, **extra: Array) -> dict[str, Array]:
    """What inflight_batcher_llm_client.py always sends."""
    return {
        "input_ids": np.array([prompt], dtype=np.int32),
        "input_lengths": column(len(prompt)),
        "request_output_len": column(length),
        "beam_width": column(1),
        "temperature": column(1.0, dtype=np.float32),
        "streaming": flag(False),
        "end_id": column(-1),
        "pad_id": column(50256),
        "runtime_top_k": column(1),
        "runtime_top_p": column(0.0, dtype=np.float32),
        **extra,
    }


def stop_arrays(length_type: Any = np.int32) -> dict[str, Array]:
    return {
        "input_ids": np.empty([1, 1], dtype=np.int32),
        "input_lengths": column(0),
        "request_output_len": column(0, dtype=length_type),
        "stop": flag(),
    }


def ask_stream(
    existing: Existing, model: str, arrays: dict[str, Array], names: list[str]
) -> list[Any]:
    """Ask over a gRPC stream for the named outputs; return every response."""
    outputs = [grpc_client.InferRequestedOutput(name) for name in names]
    with grpc_stream(existing.server) as (client, received):
        client.async_stream_infer(model, inputs_of(grpc_client, arrays), outputs=outputs)
        results = take_until_final(received)
        client.stop_stream()
        return results


def names_of(result: Any) -> set[str]:
    return {output.name for output in result.get_response().outputs}


def test_core_client_finds_exactly_the_outputs_it_requested_in_every_response(
    existing: Existing, tokenizer: Tokenizer
) -> None:
    prompt = tokenizer.encode(PROMPTS[0])
    names = TOKENS + LOG_PROBS + PERF + COUNTS
    flags = ("log_probs", "perf_metrics", "num_input_tokens", "num_output_tokens")
    arrays = core_arrays(prompt, 12, **{f"return_{name}": flag() for name in flags})
    (whole,) = ask_stream(existing, "tensorrt_llm", arrays, names)
    pieces = ask_stream(existing, "tensorrt_llm", {**arrays, "streaming": flag()}, names)
    tokens: list[int] = []
    for result in (whole, *pieces):
        assert names_of(result) == set(names)
        ids, length = result.as_numpy("output_ids"), result.as_numpy("sequence_length")[0][0]
        assert ids.shape == (1, 1, length)
        assert result.as_numpy("num_input_tokens")[0][0] == len(prompt)
        assert result.as_numpy("output_log_probs").shape[:2] == (1, 1)
        tokens += ids[0][0].tolist()
    assert tokens[: len(prompt)] == prompt and len(tokens) == len(prompt) + 24
    assert tokens[len(prompt) :][:12] == tokens[-12:]
    assert sum(piece.as_numpy("num_output_tokens")[0][0] for piece in pieces) == 12
    for last in (whole, pieces[-1]):  # blocks are counted when they are given back
        assert last.as_numpy("kv_cache_alloc_total_blocks")[0][0] >= 1
    times = [whole.as_numpy(name)[0][0] for name in PERF if name.endswith("_ns")]
    assert times == sorted(times) and times[0] > 0
    assert whole.as_numpy("kv_cache_reused_blocks").dtype == np.int32
    assert whole.as_numpy("acceptance_rate").dtype == np.float32


def test_core_model_runs_to_its_length_unless_an_end_is_named(
    existing: Existing, tokenizer: Tokenizer
) -> None:
    arrays = core_arrays(tokenizer.encode(ENDS_SOON), 40, exclude_input_in_output=flag())
    del arrays["end_id"]
    (unset,) = ask_stream(existing, "tensorrt_llm", arrays, TOKENS)
    assert unset.as_numpy("sequence_length")[0][0] == 40
    arrays["end_id"] = column(tokenizer.eos_token_id)
    (ended,) = ask_stream(existing, "tensorrt_llm", arrays, TOKENS)
    length = ended.as_numpy("sequence_length")[0][0]
    assert 0 < length < 40
    expected = unset.as_numpy("output_ids")[0][0][:length].tolist()
    assert ended.as_numpy("output_ids")[0][0].tolist() == expected


def test_stop_request_with_whatever_stands_in_its_tensors_ends_a_stream(
    existing: Existing, tokenizer: Tokenizer
) -> None:
    arrays = core_arrays(tokenizer.encode(PROMPTS[0]), 900, streaming=flag())
    with grpc_stream(existing.server) as (client, received):
        client.async_stream_infer(
            "tensorrt_llm", inputs_of(grpc_client, arrays), request_id="to-stop"
        )
        num_tokens = received.get(timeout=TIMEOUT_S)[0].as_numpy("sequence_length")[0][0]
        client.async_stream_infer(
            "tensorrt_llm",
            inputs_of(grpc_client, stop_arrays()),
            request_id="to-stop",
            parameters={"Streaming": True},
        )
        empty, is_over = 0, 0
        while not (empty and is_over):
            result, error = received.get(timeout=TIMEOUT_S)
            assert error is None
            if result.as_numpy("output_ids") is None:
                empty += 1
                continue
            num_tokens += result.as_numpy("sequence_length")[0][0]
            is_over += result.get_response().parameters["triton_final_response"].bool_param
    assert empty == 1 and num_tokens < 900


@pytest.mark.parametrize("how", ["stop request", "cancelled call"])
def test_unary_call_of_a_first_release_client_is_stopped(
    existing: Existing, tokenizer: Tokenizer, how: str
) -> None:
    prompt = tokenizer.encode(PROMPTS[1])
    arrays = core_arrays(prompt, 900, request_output_len=column(900, dtype=np.uint32))
    arrays["beam_width"] = column(1, dtype=np.uint32)
    arrays["runtime_top_k"] = column(1, dtype=np.uint32)
    received: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(existing.server.endpoints.grpc_url) as client:

        def send(arrays: dict[str, Array]) -> Any:
            return client.async_infer(
                "first_tensorrt_llm",
                inputs_of(grpc_client, arrays),
                lambda result, error: received.put(error or result),
                request_id="one",
                parameters={"Streaming": False},
            )

        call = send(arrays)
        time.sleep(0.3)
        if how == "cancelled call":
            call.cancel()
            error = received.get(timeout=TIMEOUT_S)
            assert isinstance(error, InferenceServerException)
            assert error.status() == "StatusCode.CANCELLED"
            return
        send(stop_arrays(np.uint32))
        results = [received.get(timeout=TIMEOUT_S) for _ in range(2)]
    outputs = [result.as_numpy("output_ids") for result in results]
    (ids,) = [each for each in outputs if each is not None]
    assert ids[0][0][: len(prompt)].tolist() == prompt
    assert 0 < ids.shape[2] < len(prompt) + 900


def end_to_end_arrays(prompts: list[str], streaming: bool) -> dict[str, Array]:
    """What end_to_end_grpc_client.py sends with its options given, one row a prompt."""
    rows = len(prompts)
    return {
        "text_input": texts([[prompt] for prompt in prompts]),
        "max_tokens": column(*[10] * rows),
        "stream": column(*[streaming] * rows, dtype=np.bool_),
        "beam_width": column(*[1] * rows),
        "temperature": column(*[1.0] * rows, dtype=np.float32),
        "num_return_sequences": column(*[1] * rows),
        "bad_words": texts([["zebra", "quark"]] * rows),
        "stop_words": texts([["\n\n\n"]] * rows),
        "repetition_penalty": column(*[1.1] * rows, dtype=np.float32),
        "presence_penalty": column(*[0.1] * rows, dtype=np.float32),
        "frequency_penalty": column(*[0.1] * rows, dtype=np.float32),
        "embedding_bias_words": texts([[" sea", " wind"]] * rows),
        "embedding_bias_weights": np.array([[1.0, 2.0]] * rows, dtype=np.float32),
        "end_id": column(*[2] * rows),
        "pad_id": column(*[2] * rows),
        "exclude_input_in_output": column(*[True] * rows, dtype=np.bool_),
        **{
            f"return_{name}": column(*[True] * rows, dtype=np.bool_)
            for name in ("log_probs", "context_logits", "generation_logits", "perf_metrics")
        },
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_end_to_end_client_gets_each_row_of_its_batch_from_ensemble_and_bls_alike(
    existing: Existing, streaming: bool
) -> None:
    names = ["text_output", "batch_index", *LOG_PROBS, *LOGITS, *PERF]
    arrays = end_to_end_arrays(PROMPTS, streaming)
    model_to_rows = {}
    for model in ("ensemble", "tensorrt_llm_bls"):
        rows, kinds = ["", ""], set[tuple[str, int]]()
        for result in ask_stream(existing, model, arrays, names):
            assert result.as_numpy("text_output").shape == (1,)
            rows[result.as_numpy("batch_index")[0][0]] += result.as_numpy("text_output")[0].decode()
            assert set(PERF + LOG_PROBS) <= names_of(result)
            logits = result.as_numpy("generation_logits")
            kinds |= set() if logits is None else {(logits.dtype.name, logits.ndim)}
        assert kinds == {("float16", 4)}
        model_to_rows[model] = rows
        alone = end_to_end_arrays(PROMPTS[1:], streaming)
        pieces = ask_stream(existing, model, alone, names)
        assert "".join(each.as_numpy("text_output")[0].decode() for each in pieces) == rows[1]
    assert model_to_rows["ensemble"] == model_to_rows["tensorrt_llm_bls"]
    assert all(model_to_rows["ensemble"])


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_openai_front_end_finds_one_text_and_counts_that_add_up(
    existing: Existing, tokenizer: Tokenizer, model: str
) -> None:
    arrays = {
        "text_input": texts([[ENDS_SOON]]),
        "stream": flag(),
        "max_tokens": column(40),
        "stop_words": texts([["never said"]]),
        "top_p": column(1.0, dtype=np.float32),
        "frequency_penalty": column(0.0, dtype=np.float32),
        "presence_penalty": column(0.0, dtype=np.float32),
        "seed": column(0, dtype=np.uint64),
        "temperature": column(1.0, dtype=np.float32),
        "exclude_input_in_output": flag(),
        "return_num_input_tokens": flag(),
        "return_num_output_tokens": flag(),
    }
    results = ask_stream(existing, model, arrays, ["text_output", *COUNTS])
    assert all(result.as_numpy("text_output").size == 1 for result in results)
    assert results[0].as_numpy("num_input_tokens").reshape(-1)[0] == len(
        tokenizer.encode(ENDS_SOON)
    )
    text = "".join(result.as_numpy("text_output")[0].decode() for result in results)
    counted = sum(int(result.as_numpy("num_output_tokens").reshape(-1)[0]) for result in results)
    assert counted == len(tokenizer.encode(text, False)) and "<|im_end|>" not in text


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_litellms_bodies_are_answered_whole_and_streamed(existing: Existing, model: str) -> None:
    url = existing.server.endpoints.http_url
    body = {
        "text_input": PROMPTS[0],
        "parameters": {"max_tokens": 8, "bad_words": [""], "stop_words": [""]},
        "stream": False,
    }
    status, answer = call(f"{url}/v2/models/{model}/generate", body)
    assert status == 200 and answer["text_output"].startswith(PROMPTS[0])
    pieces = stream_generate(url, model, {**body, "stream": True})
    assert PROMPTS[0] + "".join(piece["text_output"] for piece in pieces) == answer["text_output"]
