"""A Mistral with a sliding window, whole path, against transformers in float32.

The pool holds far less than a sequence, so that answers come right only where blocks that have left
the window are freed, and only those.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import MakeTinyLlama
from tests.e2e.sampling_engine import Judge, build_tiny_engine
from tests.tiny_llama import TinyLlama
from tidemill.engine.reader import EngineFile
from tidemill.runtime.config import CapacityPolicy, RuntimeConfig
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.observation import OutputWishes
from tidemill.runtime.request import Request

WINDOW = 20
SHAPE = TinyLlama(head_size=16, sliding_window=WINDOW)
NUM_NEW = 40


@pytest.fixture(scope="module")
def judge(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return build_tiny_engine(make_tiny_llama, tmp_path_factory.mktemp("window"), SHAPE)


@pytest.fixture
def executor(judge: Judge) -> Iterator[NativeExecutor]:
    # 7 blocks of 16: two requests in generation, or one that reads 32 tokens a step.
    executor = NativeExecutor.load(judge.engine_dir, kv_cache_tokens=112, num_threads=2)
    yield executor
    executor.close()


def prompt(length: int, seed: int) -> list[int]:
    return [random.Random(f"{length} {seed} {at}").randrange(3, 260) for at in range(length)]


def run(loop: Loop, *requests: Request) -> list[list[int]]:
    answers: dict[int, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        loop.submit(request)
    while loop.has_work:
        for update in loop.step():
            answers[update.request_id] += update.new_tokens
        loop.check()
    return list(answers.values())


def test_the_engine_knows_the_window(judge: Judge) -> None:
    engine = EngineFile.open(judge.engine_dir)
    assert engine.manifest.kv.attention_window == WINDOW
    assert engine.manifest.graph_text.count(f"window={WINDOW}") == SHAPE.num_layers
    config = json.loads((judge.engine_dir / "config.json").read_text())["pretrained_config"]
    assert config["runtime_defaults"] == {"max_attention_window": [WINDOW]}
    engine.close()


@pytest.mark.parametrize("max_num_tokens", [1, 17, 32])
def test_answers_beyond_the_window_are_those_of_transformers_however_prompts_are_cut(
    judge: Judge, executor: NativeExecutor, max_num_tokens: int
) -> None:
    executor.limits = replace(executor.limits, max_num_tokens=max_num_tokens)
    for length in (WINDOW - 1, WINDOW + 1, 130):
        tokens = prompt(length, seed=1)
        loop = Loop(executor)
        assert run(loop, Request(1, tuple(tokens), NUM_NEW)) == judge.generate(tokens, NUM_NEW)


def test_logits_of_a_prompt_beyond_the_window_are_those_of_transformers(
    judge: Judge, executor: NativeExecutor
) -> None:
    tokens, loop = prompt(130, seed=2), Loop(executor)
    loop.submit(Request(1, tuple(tokens), 1, wishes=OutputWishes(context_logits=True)))
    seen = [
        np.frombuffer(observation.prompt.logits, np.float32)
        for _ in range(5)
        for update in loop.step()
        for observation in update.observations
        if observation.prompt
    ]
    got = np.concatenate(seen).reshape(130, -1)
    expected = judge.logits(tokens)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("policy", list(CapacityPolicy))
def test_a_crowd_in_a_pool_smaller_than_one_sequence_gets_its_tokens_alone(
    judge: Judge, executor: NativeExecutor, policy: CapacityPolicy
) -> None:
    shared = prompt(40, seed=3)
    prompts = [shared + prompt(length, seed) for seed, length in enumerate((90, 1, 17, 90, 55))]
    loop = Loop(executor, RuntimeConfig(policy, max_draft_len=2))
    requests = [Request(index, tuple(each), NUM_NEW) for index, each in enumerate(prompts)]
    expected = [judge.generate(each, NUM_NEW)[0] for each in prompts]
    assert run(loop, *requests) == expected


def test_next_turn_reuses_what_the_window_still_sees(
    judge: Judge, executor: NativeExecutor
) -> None:
    loop, first = Loop(executor), prompt(100, seed=4)
    (answer,) = run(loop, Request(1, tuple(first), NUM_NEW))
    before = loop.stats()
    second = [*first, *answer, *prompt(9, seed=5)]
    assert run(loop, Request(2, tuple(second), NUM_NEW)) == judge.generate(second, NUM_NEW)
    # 139 positions were computed: 8 full blocks.
    assert loop.stats().total_prompt_tokens - before.total_prompt_tokens == len(second) - 128
    assert loop.stats().reused_blocks - before.reused_blocks == 2, "those that position 128 sees"
