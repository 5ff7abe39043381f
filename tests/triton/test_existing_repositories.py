"""Repositories as users have them, under the real server: theirs of TensorRT-LLM, versions, mixes.

The sample model stands for the engine; what a repository says of it is upstream's or the user's.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import tritonclient.http as http_client

from tests.triton.http_calls import call
from tidemill.frontends.triton.client import stream_generate
from tidemill.frontends.triton.deploy import DeployRequest, deploy
from tidemill.frontends.triton.serve_request import ServeRequest
from tidemill.frontends.triton.server import TritonServer

ADMIN = {"admin-key": "sesame"}
PROMPT = "The tide turns"
AWAY = ("is not at ready state", "has no available versions")

UPSTREAM_CODE = {
    "preprocessing": "from transformers import AutoTokenizer\nraise SystemExit('upstream')\n",
    "postprocessing": "from transformers import AutoTokenizer\nraise SystemExit('upstream')\n",
    "tensorrt_llm_bls": "from lib.triton_decoder import TritonDecoder\nraise SystemExit\n",
}

SHOUT_PY = """import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.shout(request) for request in requests]

    def shout(self, request):
        text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        loud = np.array([each.upper() for each in text.reshape(-1)], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOUD", loud)])
"""
SHOUT_CONFIG = """
name: "shout" backend: "python"
input { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] }
output { name: "LOUD" data_type: TYPE_STRING dims: [ -1 ] }
instance_group { kind: KIND_CPU }
"""
MINE_CONFIG = """
name: "mine" platform: "ensemble"
input [ { name: "ask" data_type: TYPE_STRING dims: [ 1 ] },
        { name: "length" data_type: TYPE_INT32 dims: [ 1 ] } ]
output { name: "answer" data_type: TYPE_STRING dims: [ -1 ] }
ensemble_scheduling { step [
  { model_name: "plain" model_version: -1
    input_map { key: "text_input" value: "ask" } input_map { key: "max_tokens" value: "length" }
    output_map { key: "text_output" value: "said" } },
  { model_name: "shout" model_version: -1
    input_map { key: "TEXT" value: "said" } output_map { key: "LOUD" value: "answer" } } ] }
"""


def write_upstreams_repository(repository: Path, engine: Path) -> None:
    """Lay out the classic five as upstream does: backend tensorrtllm, their code, our engine."""
    report = deploy(DeployRequest(engine, repository, "", "inflight_batcher_llm"))
    for model_dir in report.model_dirs:
        version = model_dir / "1"
        config = (model_dir / "config.pbtxt").read_text()
        config = config.replace('"tensorrt_llm/1"', f'"{engine}"')
        if model_dir.name == "tensorrt_llm":
            shutil.rmtree(version)
            version.mkdir()
            config = config.replace('"python"', '"tensorrtllm"')
            for name, value in (
                ("gpt_model_path", str(engine)),
                ("max_tokens_in_paged_kv_cache", ""),
                ("kv_cache_free_gpu_mem_fraction", "${kv_cache_free_gpu_mem_fraction}"),
                ("batch_scheduler_policy", "guaranteed_no_evict"),
            ):
                text = f'{{ string_value: "{value}" }}'
                config += f'parameters {{ key: "{name}" value: {text} }}\n'
        elif model_dir.name in UPSTREAM_CODE:
            (version / "model.py").write_text(UPSTREAM_CODE[model_dir.name])
        (model_dir / "config.pbtxt").write_text(config)


def write_users_repository(repository: Path, engine: Path) -> None:
    """Lay out a model in two versions, and an ensemble of the user's own around a third."""
    versions = deploy(DeployRequest(engine, repository, "versions", link="symbolic")).model_dir
    shutil.copytree(versions / "1", versions / "3", symlinks=True)
    config = versions / "config.pbtxt"
    config.write_text(config.read_text() + "version_policy { specific { versions: [ 1, 3 ] } }\n")
    shutil.copytree(versions / "1", versions / "2", symlinks=True)
    wish = DeployRequest(engine, repository, "plain", is_decoupled=False, max_batch_size=0)
    deploy(wish)
    for name, text in (("shout", SHOUT_CONFIG), ("mine", MINE_CONFIG)):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(text)
    (repository / "shout" / "1" / "model.py").write_text(SHOUT_PY)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def server(
    sample_engine: Path, tmp_path_factory: pytest.TempPathFactory, said: list[str]
) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("existing") / "models"
    write_upstreams_repository(repository, sample_engine)
    write_users_repository(repository, sample_engine)
    flags = ("--model-control-mode=explicit", "--load-model=*")
    request = ServeRequest(repository, 0, 0, 0, server_flags=flags, admin_key=ADMIN["admin-key"])
    with TritonServer(request, said.append) as server:
        yield server


def generate(server: TritonServer, model: str, **payload: Any) -> Any:
    status, answer = call(f"{server.endpoints.http_url}/v2/models/{model}/generate", payload)
    assert status == 200, answer
    return answer


def ask(server: TritonServer, model: str) -> str:
    return str(generate(server, model, text_input=PROMPT, max_tokens=12)["text_output"])


def test_upstreams_repository_loads_as_it_is_and_every_model_agrees(
    server: TritonServer, said: list[str]
) -> None:
    expected = ask(server, "plain")
    assert expected.startswith(PROMPT) and len(expected) > len(PROMPT)
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert ask(server, model) == expected
        payload = {"text_input": PROMPT, "max_tokens": 12, "stream": True}
        events = stream_generate(server.endpoints.http_url, model, payload)
        assert PROMPT + "".join(event["text_output"] for event in events) == expected
    told = "\n".join(said)
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
