"""Both models between a fake stub and a fake host: what clients get."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.triton.fake_pb_utils import (
    Array,
    InferenceRequest,
    Logger,
    TritonError,
    text_array,
)
from tests.unit.triton.served_models import FakeClient, Load, ask, on, send
from tidemill.frontends.triton.classic_tensors import PERF_OUTPUTS
from tidemill.frontends.triton.tokens_model import TokensModel
from tidemill.host.messages import Update
from tidemill.runtime.statistics import RequestMetrics


def test_whole_answer_is_one_response_with_the_final_flag(load: Load, client: FakeClient) -> None:
    sender = ask(load(decoupled=False), "Hi")
    client.tell(0, "Hi there", [5, 6], "end_id")
    (response,) = sender.responses
    assert sender.is_complete
    assert response.outputs["text_output"].shape == (1,)
    assert response.text() == "Hi there"
    assert response.outputs["finish_reason"][0] == b"stop"
    assert response.outputs["num_input_tokens"].tolist() == [[4]]
    assert response.outputs["num_output_tokens"].tolist() == [[2]]
    assert "batch_index" not in response.outputs and "output_ids" not in response.outputs


def test_stream_sends_pieces_and_flags_the_last_one_that_holds_data(
    load: Load, client: FakeClient
) -> None:
    sender = ask(load(), "Hi", stream=on(), return_output_ids=on())
    assert client.requests[0].streaming
    client.tell(0, " the", [5])
    client.tell(0, "", [6])  # half a character: held back, its token is not lost
    client.tell(0, "\U0001f40c", [7])
    client.tell(0, "", [], "length")
    assert [response.text() for response in sender.responses] == [" the", "\U0001f40c", ""]
    tokens = [response.outputs["output_ids"].tolist() for response in sender.responses]
    assert tokens == [[[[5]]], [[[6, 7]]], [[[]]]]
    lengths = [response.outputs["sequence_length"].tolist() for response in sender.responses]
    assert lengths == [[[1]], [[2]], [[0]]]
    assert [flags for _, flags in sender.sent] == [0, 0, 1]
    assert "finish_reason" not in sender.responses[0].outputs


def test_extras_can_be_left_out(load: Load, client: FakeClient) -> None:
    off = np.array([[False]])
    sender = ask(load(), "Hi", return_num_input_tokens=off, return_num_output_tokens=off)
    client.tell(0, "x", [1], "length")
    assert set(sender.responses[0].outputs) == {"text_output", "finish_reason"}


def test_costs_come_with_every_piece_where_they_were_asked_for(
    load: Load, client: FakeClient
) -> None:
    model = load()
    asked = ask(model, "Hi", stream=on(), return_perf_metrics=on())
    plain = ask(model, "Hi")
    assert client.requests[0].return_perf_metrics and not client.requests[1].return_perf_metrics
    early = RequestMetrics(arrival_time=2.0, first_scheduled_time=2.5, num_new_blocks=3)
    late = replace(early, first_token_time=3.0, last_token_time=4.0, num_reused_blocks=5)
    for row, metrics, reason in ((0, early, None), (0, late, "length"), (1, late, "length")):
        update = Update(client.requests[row].request_id, [7], "x", reason, 4, 1, metrics=metrics)
        client.listeners[row](update)
        client.after_updates()
    first, last = (response.outputs for response in asked.responses)
    assert first["last_token_time_ns"].tolist() == [[0]]
    assert first["kv_cache_alloc_new_blocks"].tolist() == [[3]]
    assert last["last_token_time_ns"].tolist() == [[4_000_000_000]]
    assert last["kv_cache_reused_blocks"].tolist() == [[5]]
    names = {tensor.name for tensor in PERF_OUTPUTS}
    assert names <= set(first) and names <= set(last) and len(names) == 10
    assert not names & set(plain.responses[0].outputs)


@pytest.mark.parametrize("declared", ["TYPE_FP32", "TYPE_FP16"])
def test_logits_have_the_type_that_the_deployment_declares(
    load: Load, client: FakeClient, declared: str
) -> None:
    model = load(output=[{"name": "generation_logits", "data_type": declared}])
    sender = ask(model, "Hi", return_generation_logits=on())
    logits = np.array([0.5, -2.0], dtype=np.float32)
    update = Update("", [7], "x", "length", 4, 1, generation_logits=logits.tobytes())
    client.listeners[0](update)
    client.after_updates()
    found = sender.responses[0].outputs["generation_logits"]
    assert found.dtype == {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16}[declared]
    assert found.tolist() == [[[[0.5, -2.0]]]]


@pytest.mark.parametrize("kind", ["context_only", "generation_only"])
def test_half_of_disaggregated_serving_is_refused(load: Load, kind: str) -> None:
    arrays = {"text_input": text_array("Hi"), "max_tokens": np.array([[9]])}
    sender = send(load(), InferenceRequest(arrays, parameters=json.dumps({"request_type": kind})))
    assert sender.error.code == TritonError.INVALID_ARG and kind in str(sender.error)


def test_search_wider_than_the_deployment_allows_is_refused(load: Load, client: FakeClient) -> None:
    model = load(parameters={"max_beam_width": {"string_value": "2"}})
    assert "at most 2" in str(ask(model, "Hi", beam_width=np.array([[3]])).error)
    ask(model, "Hi", beam_width=np.array([[2]]))
    assert len(client.requests) == 1


def test_stream_of_beams_is_their_last_state_in_one_response(
    load: Load, client: FakeClient
) -> None:
    sender = ask(load(), "Hi", stream=on(), beam_width=np.array([[2]]))
    assert not client.requests[0].streaming and client.requests[0].exclude_input_in_output
    for index, text in enumerate(("best", "second")):
        update = Update("", [7], text, "length", 4, 1, index=index, num_open=1 - index)
        client.listeners[0](update)
        client.after_updates()
    (response,) = sender.responses
    assert sender.is_complete
    assert response.outputs["text_output"].tolist() == [b"best", b"second"]


def test_model_without_batch_dimension_answers_with_one_axis_less(
    load: Load, client: FakeClient
) -> None:
    arrays = {"text_input": text_array("Hi", shape=(1,)), "max_tokens": np.array([3])}
    arrays["return_output_ids"] = np.array([True])
    sender = send(load(max_batch_size=0), InferenceRequest(arrays))
    client.tell(0, "x", [1, 2], "length")
    outputs = sender.responses[0].outputs
    assert outputs["num_output_tokens"].tolist() == [2]
    assert outputs["output_ids"].tolist() == [[1, 2]]


def test_batch_is_answered_row_by_row_and_only_the_last_is_final(
    load: Load, client: FakeClient
) -> None:
    sender = ask(load(), "a", "b", "c")
    client.tell(2, "C", [1], "length")
    client.tell(0, "A", [1], "length")
    assert not sender.is_complete
    client.tell(1, "B", [1], "length")
    rows = [
        (response.text(), response.outputs["batch_index"].tolist()) for response in sender.responses
    ]
    assert rows == [("C", [[2]]), ("A", [[0]]), ("B", [[1]])]
    assert [flags for _, flags in sender.sent] == [0, 0, 1]


@pytest.mark.parametrize(
    ("server_default", "given", "expected"),
    [("false", None, False), ("true", None, True), ("true", False, False), ("false", True, True)],
)
def test_prompt_is_echoed_unless_the_request_or_else_the_deployment_excludes_it(
    load: Load, client: FakeClient, server_default: str, given: bool | None, expected: bool
) -> None:
    model = load(parameters={"exclude_input_in_output": {"string_value": server_default}})
    extra = {} if given is None else {"exclude_input_in_output": np.array([[given]])}
    arrays = {"text_input": text_array("Hi"), "max_tokens": np.array([[9]]), **extra}
    send(model, InferenceRequest(arrays))
    assert client.requests[0].exclude_input_in_output is expected


def tokens_request(**extra: Array) -> InferenceRequest:
    arrays = {
        "input_ids": np.array([1, 2, 3, 4, 5], dtype=np.int32),
        "input_lengths": np.array([2, 3], dtype=np.int32),
        **extra,
    }
    return InferenceRequest(arrays)


def test_packed_prompts_are_cut_apart_and_answers_packed_in_prompt_order(
    load: Load, client: FakeClient
) -> None:
    sender = send(load(TokensModel, decoupled=False, max_batch_size=0), tokens_request())
    assert [request.prompt_tokens for request in client.requests] == [[1, 2], [3, 4, 5]]
    assert [request.max_tokens for request in client.requests] == [None, None]
    client.tell(1, "", [9, 9, 9], "length")
    assert not sender.sent
    client.tell(0, "", [8], "end_id")
    (response,) = sender.responses
    assert response.outputs["output_ids"].tolist() == [8, 9, 9, 9]
    assert response.outputs["output_lengths"].tolist() == [1, 3]


def test_packed_stream_tells_what_is_new_of_each_prompt(load: Load, client: FakeClient) -> None:
    model = load(TokensModel, max_batch_size=0)
    lengths = np.array([3, 1], dtype=np.int32)
    sender = send(model, tokens_request(streaming=np.array([True]), request_output_len=lengths))
    assert [request.max_tokens for request in client.requests] == [3, 1]
    client.tell(0, "", [7])
    client.tell(1, "", [8], "length")
    client.tell(0, "", [9], "length")
    news = [
        (response.outputs["output_ids"].tolist(), response.outputs["output_lengths"].tolist())
        for response in sender.responses
    ]
    assert news == [([7], [1, 0]), ([8], [0, 1]), ([9], [1, 0])]
    assert sender.is_complete


def test_log_says_how_the_engine_is_run_and_who_chose(load: Load) -> None:
    load(parameters={"max_queue_size": {"string_value": "7"}})
    line = Logger.lines[-1]
    assert " is run with batch_scheduler_policy guaranteed_no_evict (default), " in line
    assert "max_queue_size 7 (user)" in line
