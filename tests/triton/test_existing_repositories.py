"""Repositories as users have them, under the real server: theirs of TensorRT-LLM, versions, mixes.

The sample model stands for the engine; what a repository says of it is upstream's or the user's.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import tritonclient.http as http_client

from tests.triton.conftest import ADMIN_KEY, Existing
from tests.triton.http_calls import call
from tidemill.frontends.triton.client import stream_generate
from tidemill.frontends.triton.server import TritonServer

ADMIN = {"admin-key": ADMIN_KEY}
PROMPT = "The tide turns"


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


def test_models_come_and_go_under_load_without_harm_to_others(server: TritonServer) -> None:
    expected, is_over = ask(server, "ensemble"), Event()

    def load() -> int:
        for count in itertools.count():
            if is_over.is_set():
                return count
            assert ask(server, "ensemble") == expected
        raise AssertionError

    with (
        http_client.InferenceServerClient(server.endpoints.http_address) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        loads = [pool.submit(load) for _ in range(2)]
        try:
            for _ in range(2):
                client.unload_model("versions", headers=ADMIN)
                client.load_model("versions", headers=ADMIN)
                assert ask(server, "versions") == expected
        finally:
            is_over.set()
        assert all(each.result(timeout=30) > 0 for each in loads)
