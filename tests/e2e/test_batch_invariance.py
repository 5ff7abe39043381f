"""One request's tokens and logits are the same bits alone and in any crowd.

Random mixes of up to 32 requests, arriving at random steps, with prompts cut into chunks of any
size, on one thread and on two, against each request alone on one thread. Every weight type on
every target that this machine can run; the sample model briefly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.compare import assert_same_bits
from tests.conftest import MakeSample, MakeTinyLlama
from tests.recording_executor import RecordingExecutor
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.base.target import host_targets
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import Request, SamplingParams

SEED = 20261124
TINY = TinyLlama(head_size=16)
GROUPED_TINY = replace(TINY, hidden_size=96, intermediate_size=128)
DTYPES = (
    ("float32", "none"),
    ("float16", "none"),
    ("bfloat16", "none"),
    ("bfloat16", "w8a8"),
    ("bfloat16", "w8a16"),
    ("bfloat16", "w4a8_g32"),
    ("bfloat16", "w4a16_g32"),
)
TARGETS = [target.name for target in host_targets()]
MIX_SIZES = (32, 1, 2, 31, 13)
# Around the attention's chunk of 64 positions, the blocks of 16, and the tiles of 14, 12 and 2.
PROMPT_LENGTHS = (1, 2, 3, 13, 15, 16, 17, 31, 33, 63, 64, 65, 97, 129, 150)

Tokens = dict[int, list[int]]
MakeEngine = Callable[[str, str, str], Path]


@pytest.fixture(scope="module")
def make_engine(
    make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory
) -> MakeEngine:
    def make(dtype: str, target: str, quant: str) -> Path:
        directory = tmp_path_factory.mktemp(f"{dtype}_{target}_{quant}")
        checkpoint, engine = directory / "checkpoint", directory / "engine"
        shape = GROUPED_TINY if quant.startswith("w4") else TINY
        convert(ConvertRequest(make_tiny_llama(shape), checkpoint, dtype=dtype))
        build(
            BuildRequest(
                checkpoint,
                engine,
                max_batch_size=32,
                max_seq_len=192,
                max_num_tokens=256,
                tokens_per_block=16,
                target=target,
                quant=quant,
            )
        )
        return engine

    return make


def random_requests(
    chance: random.Random, count: int, vocab_size: int, lengths: Sequence[int], most_new: int
) -> list[Request]:
    """Greedy and sampling requests; ids are their places in the list."""
    settings = [
        SamplingParams(),
        SamplingParams(temperature=0.9, top_k=0, seed=3),
        SamplingParams(temperature=1.4, top_k=20, top_p=0.8, seed=2**63),
    ]
    return [
        Request(
            number,
            tuple(chance.randrange(vocab_size) for _ in range(chance.choice(lengths))),
            chance.randint(1, most_new),
            chance.choice(settings),
        )
        for number in range(count)
    ]


def run_mix(
    executor: RecordingExecutor, requests: Sequence[Request], chance: random.Random
) -> Tokens:
    """Run requests that arrive at random steps; returns the tokens of each."""
    loop = Loop(executor)
    waiting = list(requests)
    tokens: Tokens = {request.request_id: [] for request in requests}
    while waiting or loop.has_work:
        for _ in range(min(len(waiting), chance.choice([0, 0, 1, 2, 9]))):
            loop.submit(waiting.pop(0))
        for update in loop.step():
            tokens[update.request_id] += update.new_tokens
        loop.check()
    return tokens


def run_alone(executor: RecordingExecutor, requests: Sequence[Request]) -> Tokens:
    tokens: Tokens = {}
    for request in requests:
        tokens |= run_mix(executor, [request], random.Random(0))
    assert executor.most_entries == 1
    return tokens


def assert_same(alone: RecordingExecutor, crowd: RecordingExecutor, numbers: set[int]) -> None:
    expected = {key: row for key, row in alone.logits.items() if key[0] in numbers}
    assert crowd.logits.keys() == expected.keys()
    for key, row in expected.items():
        assert_same_bits(crowd.logits[key], row, f"logits of request, position {key}")


@pytest.mark.parametrize(("dtype", "quant"), DTYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_crowd_chunks_and_threads_change_no_bit(
    target: str, dtype: str, quant: str, make_engine: MakeEngine
) -> None:
    print(f"seed {SEED}")
    chance = random.Random(f"{SEED} {target} {dtype} {quant}")
    engine = make_engine(dtype, target, quant)
    requests = random_requests(chance, 32, TINY.vocab_size, PROMPT_LENGTHS, most_new=24)
    single = NativeExecutor.load(engine, kv_cache_tokens=8192, num_threads=1)
    double = NativeExecutor.load(engine, kv_cache_tokens=2048, num_threads=2)
    alone = RecordingExecutor(single)
    tokens_alone = run_alone(alone, requests)
    for size in MIX_SIZES:
        chosen = chance.sample(requests, size)
        numbers = {request.request_id for request in chosen}
        for executor in (single, double):
            batch = chance.choice([1, 3, 32])
            most = chance.choice([batch, batch + 1, 47, 63, 100, 256])
            crowd = RecordingExecutor(
                executor, max_batch_size=batch, max_num_tokens=max(batch, most)
            )
            tokens = run_mix(crowd, chosen, chance)
            assert tokens == {number: tokens_alone[number] for number in numbers}
            assert_same(alone, crowd, numbers)
    single.close()
    double.close()


def test_sample_in_a_crowd_gives_the_bits_it_gives_alone(make_sample: MakeSample) -> None:
    chance = random.Random(SEED)
    engine = make_sample("bfloat16").engine
    requests = random_requests(chance, 8, 49152, (17, 65, 130), most_new=6)
    single = NativeExecutor.load(engine, kv_cache_tokens=2048, num_threads=1)
    double = NativeExecutor.load(engine, kv_cache_tokens=2048, num_threads=2)
    alone = RecordingExecutor(single)
    tokens_alone = run_alone(alone, requests)
    crowd = RecordingExecutor(double, max_num_tokens=37)
    assert run_mix(crowd, requests, chance) == tokens_alone
    assert_same(alone, crowd, set(tokens_alone))
    assert crowd.most_entries > 2 and crowd.num_chunks > 2
    single.close()
    double.close()
