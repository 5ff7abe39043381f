"""A tiny real engine behind `LLM` and behind a host: the same tokens alone and in a crowd."""

from __future__ import annotations

import queue
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.llm import LLM, RequestOutput, SamplingParams
from tidemill.api.sampling_params import make_request
from tidemill.base.errors import EngineFormatError
from tidemill.host.client import HostClient
from tidemill.host.config import HostConfig
from tidemill.host.messages import GenerateRequest, Update

SEED = 20261123
NUM_PROMPTS = 24


@pytest.fixture(scope="module")
def engine_dir(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llm")
    model_dir = make_tiny_llama(TinyLlama(head_size=16))
    convert(ConvertRequest(model_dir, directory / "checkpoint", dtype="bfloat16"))
    build(
        BuildRequest(
            directory / "checkpoint",
            directory / "engine",
            max_batch_size=7,
            max_input_len=200,
            max_seq_len=256,
            max_num_tokens=48,
            tokens_per_block=16,
        )
    )
    return directory / "engine"


@pytest.fixture(scope="module")
def llm(engine_dir: Path) -> Iterator[LLM]:
    with LLM(engine_dir, num_threads=1) as llm:
        yield llm


def workload() -> tuple[list[list[int]], list[SamplingParams]]:
    chance = random.Random(SEED)
    lengths = [chance.choice([1, 2, 15, 16, 17, 47, 48, 49, 101, 200]) for _ in range(NUM_PROMPTS)]
    prompts = [[chance.randrange(3, 263) for _ in range(length)] for length in lengths]
    params = [
        SamplingParams(
            max_tokens=chance.choice([1, 2, 17, 40]),
            temperature=chance.choice([None, 0.8, 1.3]),
            top_k=chance.choice([None, 5]),
            seed=number,
            ignore_eos=True,
        )
        for number in range(NUM_PROMPTS)
    ]
    return prompts, params


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def tokens_alone(llm: LLM) -> list[list[int]]:
    prompts, params = workload()
    each = zip(prompts, params, strict=True)
    return [tokens(llm.generate([prompt], own))[0] for prompt, own in each]


def test_crowd_changes_no_token(llm: LLM, tokens_alone: list[list[int]]) -> None:
    prompts, params = workload()
    assert tokens(llm.generate(prompts, params)) == tokens_alone
    assert [len(each) for each in tokens_alone] == [own.max_tokens for own in params]
    assert len({tuple(each) for each in tokens_alone}) > NUM_PROMPTS // 2, "answers say little"


def test_tiny_cache_and_other_threads_change_no_token(
    engine_dir: Path, tokens_alone: list[list[int]]
) -> None:
    prompts, params = workload()
    with LLM(engine_dir, kv_cache_tokens=256, num_threads=2) as crowded:
        assert tokens(crowded.generate(prompts, params)) == tokens_alone


def test_blocks_longer_than_a_sequence_change_no_token_and_serve_the_whole_batch(
    engine_dir: Path, tokens_alone: list[list[int]], tmp_path: Path
) -> None:
    request = BuildRequest(engine_dir.parent / "checkpoint", tmp_path / "engine", 7)
    build(replace(request, max_seq_len=256, tokens_per_block=1024))
    with LLM(tmp_path / "engine", num_threads=2) as wide:
        assert wide.limits.num_blocks == 7
        assert tokens(wide.generate(*workload())) == tokens_alone


def test_cancelled_neighbours_change_no_token(llm: LLM, tokens_alone: list[list[int]]) -> None:
    prompts, params = workload()
    streams = [llm.generate_stream(prompt, SamplingParams(40)) for prompt in prompts[:5]]
    for stream in streams:
        next(stream)
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    assert tokens(llm.generate(prompts[5:], params[5:])) == tokens_alone[5:]


def test_host_gives_the_tokens_of_the_engine_in_process(
    engine_dir: Path,
    tokens_alone: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    prompts, params = workload()
    inbox: queue.SimpleQueue[Update] = queue.SimpleQueue()
    with HostClient.connect_or_start(engine_dir, host=HostConfig(grace_seconds=0.1)) as client:
        for number, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
            client.submit(make_request(own, str(number), None, prompt, False), inbox.put)
        updates = [inbox.get(timeout=30) for _ in prompts]
    found = {int(update.request_id): update.token_ids for update in updates}
    assert [found[number] for number in range(NUM_PROMPTS)] == tokens_alone


def test_host_tells_what_is_wrong_with_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "engine").mkdir()
    with pytest.raises(EngineFormatError):
        HostClient.connect_or_start(tmp_path / "engine", host=HostConfig(grace_seconds=0.1))


def test_host_serves_text(
    engine_dir: Path, llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    inbox: queue.SimpleQueue[Update] = queue.SimpleQueue()
    with HostClient.connect_or_start(engine_dir, host=HostConfig(grace_seconds=0.1)) as client:
        request = GenerateRequest(request_id="a", prompt="Hello", exclude_input_in_output=False)
        client.submit(request, inbox.put)
        update = inbox.get(timeout=30)
    expected = llm.generate("Hello").outputs[0]
    assert update.text == "Hello" + expected.text and update.token_ids == expected.token_ids
