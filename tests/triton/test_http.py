"""The HTTP interface of the real server: health, infer, generate, streams, and refusals."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest

from tests.triton.conftest import Served
from tests.triton.event_stream import stream_generate
from tests.triton.http_calls import call, infer_body
from tests.triton.spelled_host import connect_spelled
from tests.triton.spelled_repository import PACKED, STREAMING, UNARY
from tidemill.base.errors import ServerError
from tidemill.text.tokenizer import Tokenizer

TEXTS = [
    "hello",
    " two  leading spaces",
    "emoji \U0001f40c\U0001f469\u200d\U0001f680!",
    "\u6f6e\u6c50\u78e8\u574a",
    "e\u0301 combining",
    "",
]


def ask(served: Served, model: str, **payload: Any) -> tuple[int, Any]:
    return call(f"{served.server.endpoints.http_url}/v2/models/{model}/generate", payload)


def stream(served: Served, prompt: str, **payload: Any) -> list[dict[str, Any]]:
    payload = {"text_input": prompt, "max_tokens": 64, "stream": True, **payload}
    return list(stream_generate(served.server.endpoints.http_url, STREAMING, payload))


def test_server_and_every_model_are_live_and_ready(served: Served) -> None:
    url = served.server.endpoints.http_url
    paths = ["/v2/health/live", "/v2/health/ready"]
    paths += [f"/v2/models/{name}/ready" for name in (STREAMING, UNARY, PACKED, "sample")]
    assert [call(url + path)[0] for path in paths] == [200] * len(paths)
    assert call(f"{url}/v2/models/none/ready")[0] == 400


def test_metadata_shows_the_contracts_names_types_and_shapes(served: Served) -> None:
    status, answer = call(f"{served.server.endpoints.http_url}/v2/models/{STREAMING}")
    assert status == 200
    inputs = {each["name"]: (each["datatype"], each["shape"]) for each in answer["inputs"]}
    assert inputs["text_input"] == ("BYTES", [-1, 1])
    assert inputs["max_tokens"] == ("INT32", [-1, 1])
    assert inputs["stop_words"] == ("BYTES", [-1, -1])
    assert {"seed", "random_seed", "min_tokens", "min_length", "stream", "stop"} <= set(inputs)
    assert {each["name"] for each in answer["outputs"]} >= {"text_output", "finish_reason"}


def test_batching_is_the_engines_and_never_tritons(served: Served) -> None:
    _, config = call(f"{served.server.endpoints.http_url}/v2/models/{STREAMING}/config")
    assert "dynamic_batching" not in config
    assert [group["count"] for group in config["instance_group"]] == [1]


def test_infer_answers_with_a_one_dimensional_text(served: Served) -> None:
    url = f"{served.server.endpoints.http_url}/v2/models/{UNARY}/infer"
    status, answer = call(url, infer_body("say >hello", 16))
    assert status == 200
    outputs = {each["name"]: (each["shape"], each["data"]) for each in answer["outputs"]}
    assert outputs["text_output"] == ([1], ["say >hellohello"])
    assert outputs["finish_reason"] == ([1], ["stop"])
    assert outputs["num_output_tokens"] == ([1, 1], [5])


def test_infer_on_a_decoupled_model_is_refused_by_triton_itself(served: Served) -> None:
    status, answer = call(
        f"{served.server.endpoints.http_url}/v2/models/{STREAMING}/infer", infer_body("", 1)
    )
    assert status == 501 and "decoupled transaction policy" in answer["error"]


@pytest.mark.parametrize("model", [STREAMING, UNARY])
@pytest.mark.parametrize("excludes", [True, False])
def test_generate_gives_one_whole_answer(served: Served, model: str, excludes: bool) -> None:
    status, answer = ask(
        served, model, text_input="a >b c", max_tokens=64, exclude_input_in_output=excludes
    )
    assert status == 200
    assert answer["text_output"] == ("b c" if excludes else "a >b cb c")
    assert (answer["finish_reason"], answer["num_output_tokens"]) == ("stop", 3)


@pytest.mark.parametrize("text", TEXTS)
def test_stream_joined_is_the_whole_answer(served: Served, text: str) -> None:
    events = stream(served, f"say >{text}")
    assert "".join(event["text_output"] for event in events) == text
    assert sum(event["num_output_tokens"] for event in events) == len(text.encode())
    assert [event.get("finish_reason") for event in events] == [None] * (len(events) - 1) + ["stop"]


def test_length_ends_a_stream_that_would_go_on_for_ever(served: Served) -> None:
    events = stream(served, "never", max_tokens=17)
    assert "".join(event["text_output"] for event in events) == "x" * 17
    assert events[-1]["finish_reason"] == "length"


def test_stop_words_end_an_answer_and_are_not_in_it(served: Served) -> None:
    _, answer = ask(
        served,
        STREAMING,
        text_input=">one two three",
        max_tokens=64,
        stop_words=["nope", "two"],
        exclude_input_in_output=True,
    )
    assert (answer["text_output"], answer["finish_reason"]) == ("one ", "stop")


def test_values_that_older_clients_send_as_nothing_are_taken_as_nothing(served: Served) -> None:
    status, answer = ask(
        served, UNARY, text_input=">ok", max_tokens=9, bad_words="", stop_words="", beam_width=1,
        length_penalty=1.0, repetition_penalty=1.0, min_length=1, random_seed=3, pad_id=2,
        temperature=1.0, top_k=1, top_p=0.0, return_log_probs=False,
    )  # fmt: skip
    assert status == 200 and answer["text_output"].endswith("ok")


@pytest.mark.parametrize(
    ("payload", "part"),
    [
        ({"text_input": "x"}, "missing required input(s) ['max_tokens']"),
        ({"text_input": "x" * 2049, "max_tokens": 4}, "2048"),
        ({"text_input": "x", "max_tokens": 0}, "max_tokens"),
        ({"text_input": "x", "max_tokens": 4, "top_p": 1.5}, "top_p"),
        ({"text_input": "x", "max_tokens": 4, "lora_task_id": 4}, "lora_task_id"),
        ({"text_input": "x", "max_tokens": 4, "repetition_penalty": -1.0}, "repetition_penalty"),
        ({"text_input": "", "max_tokens": 4}, "prompt"),
    ],
)
@pytest.mark.parametrize("model", [STREAMING, UNARY])
def test_request_that_cannot_be_served_says_why_and_harms_no_other(
    served: Served, model: str, payload: dict[str, Any], part: str
) -> None:
    status, answer = ask(served, model, **payload)
    assert status == 400 and part in answer["error"]
    assert ask(served, model, text_input=">ok", max_tokens=4)[0] == 200


def test_stream_on_a_unary_deployment_is_refused_in_upstreams_words(served: Served) -> None:
    _, answer = ask(served, UNARY, text_input=">x", max_tokens=4, stream=True)
    assert (
        answer["error"]
        .splitlines()[0]
        .endswith("Streaming is only supported if model is deployed using decoupled mode.")
    )


def test_refused_stream_reports_the_error(served: Served) -> None:
    with pytest.raises(ServerError, match="beam_width >= 1"):
        stream(served, "x", beam_width=-2)


def test_batch_on_a_unary_deployment_is_refused_in_upstreams_words(served: Served) -> None:
    status, answer = ask(served, UNARY, text_input=["a", "b"], max_tokens=[4, 4])
    assert status == 400 and "Batch size > 1 requires" in answer["error"]


def test_concurrent_streams_keep_their_own_texts(served: Served) -> None:
    texts = [f"answer number {number} " * 3 for number in range(8)]

    def joined(text: str) -> str:
        return "".join(event["text_output"] for event in stream(served, f">{text}"))

    with ThreadPoolExecutor(len(texts)) as pool:
        assert list(pool.map(joined, texts)) == texts


def test_concurrent_unary_requests_run_side_by_side(served: Served) -> None:
    """One takes about 0.4 s at 2 ms a step; eight in a row would take over three."""
    start = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: ask(served, UNARY, text_input="x", max_tokens=200), range(8))
        )
    assert [status for status, _ in answers] == [200] * 8
    assert time.monotonic() - start < 2.5


def active_requests(served: Served) -> int:
    with connect_spelled(served.spelled_engine) as client:
        stats = client.info().stats
    return stats.num_active_requests + stats.num_queued_requests


def wait_until_idle(served: Served) -> None:
    deadline = time.monotonic() + 5
    while active_requests(served):
        assert time.monotonic() < deadline, "the request still runs"
        time.sleep(0.02)


def test_client_that_disconnects_is_cancelled_within_a_moment(served: Served) -> None:
    payload = {"text_input": "for ever", "max_tokens": 2000, "stream": True}
    events = stream_generate(served.server.endpoints.http_url, STREAMING, payload)
    assert len(list(islice(events, 3))) == 3
    assert active_requests(served) == 1
    events.close()
    start = time.monotonic()
    wait_until_idle(served)
    assert time.monotonic() - start < 2.0


def test_stop_request_of_the_same_id_ends_a_stream_normally(served: Served) -> None:
    payload = {"text_input": "for ever", "max_tokens": 2000, "stream": True, "id": "to-stop"}
    events = stream_generate(served.server.endpoints.http_url, STREAMING, payload)
    first = list(islice(events, 3))
    status, answer = ask(served, STREAMING, text_input="", max_tokens=0, stop=True, id="to-stop")
    assert status == 200 and "text_output" not in answer
    rest = list(events)
    assert rest[-1]["finish_reason"] == "cancelled"
    assert len(first) + len(rest) < 2000


def test_stop_request_without_an_id_is_refused(served: Served) -> None:
    status, answer = ask(served, STREAMING, text_input="", max_tokens=0, stop=True)
    assert status == 400 and "request ID is not provided" in answer["error"]


def test_death_of_the_host_ends_its_requests_and_the_next_is_served(served: Served) -> None:
    status, answer = ask(served, STREAMING, text_input="!die", max_tokens=4)
    assert status == 400 and "engine host" in answer["error"]
    status, answer = ask(served, STREAMING, text_input=">ok", max_tokens=4)
    assert status == 200 and answer["text_output"].endswith("ok")


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/models/spelled/load",
        "/v2/systemsharedmemory/status",
        "/v2/logging",
        "/v2/trace/setting",
    ],
)
def test_admin_endpoints_are_closed(served: Served, path: str) -> None:
    body: dict[str, Any] | None = None if path.endswith("status") else {}
    status, answer = call(served.server.endpoints.http_url + path, body)
    assert status == 403 and "restricted" in answer["error"]


def test_packed_prompts_over_json_come_back_packed(served: Served) -> None:
    tokenizer = Tokenizer.from_directory(served.spelled_engine)
    prompts = [tokenizer.encode(text) for text in (">ab", ">c", "zz>def")]
    body: dict[str, Any] = {
        "input_ids": [token for prompt in prompts for token in prompt],
        "input_lengths": [len(prompt) for prompt in prompts],
    }
    status, answer = call(f"{served.server.endpoints.http_url}/v2/models/{PACKED}/generate", body)
    assert status == 200
    assert answer["output_lengths"] == [2, 1, 3]
    assert tokenizer.decode(answer["output_ids"]) == "abcdef"
