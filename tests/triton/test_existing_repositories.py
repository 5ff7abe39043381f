"""Repositories as users have them, under the real server: theirs of TensorRT-LLM, versions, mixes.

The sample model stands for the engine; what a repository says of it is upstream's or the user's.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import tritonclient.http as http_client

from tests.triton.conftest import ADMIN_KEY, Existing
from tests.triton.event_stream import stream_generate
from tests.triton.http_calls import call
from tidemill.frontends.triton.server import TritonServer

ADMIN = {"admin-key": ADMIN_KEY}
PROMPT = "The tide turns"
AWAY = ("is not at ready state", "has no available versions")


@pytest.fixture
def server(existing: Existing) -> TritonServer:
    return existing.server


def generate(server: TritonServer, model: str, **payload: Any) -> Any:
    status, answer = call(f"{server.endpoints.http_url}/v2/models/{model}/generate", payload)
    assert status == 200, answer
    return answer


def ask(server: TritonServer, model: str) -> str:
    return str(generate(server, model, text_input=PROMPT, max_tokens=12)["text_output"])


def test_upstreams_repository_loads_as_it_is_and_every_model_agrees(
    server: TritonServer, existing: Existing
) -> None:
    expected = ask(server, "plain")
    assert expected.startswith(PROMPT) and len(expected) > len(PROMPT)
    for model in ("first_ensemble", "first_tensorrt_llm_bls"):
        assert ask(server, model) == expected
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert ask(server, model) == expected
        payload = {"text_input": PROMPT, "max_tokens": 12, "stream": True}
        events = stream_generate(server.endpoints.http_url, model, payload)
        assert PROMPT + "".join(event["text_output"] for event in events) == expected
    told = "\n".join(existing.said)
    for model, module in (("preprocessing", "preprocessing"), ("tensorrt_llm_bls", "bls")):
        assert f"{model}: 1/model.py -> {module}_model of tidemill" in told


@pytest.mark.parametrize(
    "prompt",
    [
        "Again: \U0001f40c\u6f6e \U0001f469\u200d\U0001f680 e\u0301 \u0915\u094d\u0937\nAgain:",
        "\u6f6e\u6c50\u78e8\u574a\uff0c\u8f6e\u8f6c",
        "  def f(x):\n\n    ",
    ],
    ids=ascii,
)
def test_streams_of_upstreams_own_ensemble_join_to_the_text_of_every_other_model(
    server: TritonServer, prompt: str
) -> None:
    """It knows nothing of our tensors: its text is made of each response's tokens alone."""
    wish = {"text_input": prompt, "max_tokens": 24}
    expected = generate(server, "plain", **wish)["text_output"]
    url = server.endpoints.http_url
    for model in ("ensemble", "tensorrt_llm_bls", "versions"):
        assert generate(server, model, **wish)["text_output"] == expected
        pieces = stream_generate(url, model, {**wish, "stream": True})
        assert prompt + "".join(piece["text_output"] for piece in pieces) == expected


def test_versions_that_the_policy_names_are_served_side_by_side(server: TritonServer) -> None:
    url = f"{server.endpoints.http_url}/v2/models/versions"
    body = {"text_input": PROMPT, "max_tokens": 5}
    answers = {number: call(f"{url}/versions/{number}/generate", body) for number in (1, 2, 3)}
    assert {number: answer[0] for number, answer in answers.items()} == {1: 200, 2: 404, 3: 200}
    assert answers[1][1]["model_version"] == "1" and answers[3][1]["model_version"] == "3"
    assert generate(server, "versions", **body)["model_version"] == "3"


def test_users_own_ensemble_around_a_model_of_ours(server: TritonServer) -> None:
    answer = generate(server, "mine", ask=PROMPT, length=12)["answer"]
    assert answer == ask(server, "plain").upper()


def test_models_and_versions_come_and_go_while_they_and_others_are_asked(
    server: TritonServer,
) -> None:
    expected, is_over = ask(server, "ensemble"), Event()
    body = {"text_input": PROMPT, "max_tokens": 12}

    def load(path: str) -> Counter[str]:
        """Ask until it is over: what is away says so, and whatever answers is right."""
        counts = Counter[str]()
        while not is_over.is_set():
            url = f"{server.endpoints.http_url}/v2/models/{path}/generate"
            status, answer = call(url, body)
            if status == 200:
                assert answer["text_output"] == expected
            else:
                assert path != "ensemble" and answer["error"].endswith(AWAY), answer
                is_over.wait(0.02)
            counts["right" if status == 200 else "away"] += 1
        return counts

    paths = ("ensemble", "plain", "versions/versions/1", "versions/versions/3")
    with (
        http_client.InferenceServerClient(server.endpoints.http_address) as client,
        ThreadPoolExecutor(len(paths)) as pool,
    ):
        loads = {path: pool.submit(load, path) for path in paths}
        try:
            for model in ("versions", "plain", "versions"):
                client.unload_model(model, headers=ADMIN)
                client.load_model(model, headers=ADMIN)
                assert ask(server, model) == expected
        finally:
            is_over.set()
        counts = {path: each.result(timeout=30) for path, each in loads.items()}
    assert all(each["right"] for each in counts.values()), counts
