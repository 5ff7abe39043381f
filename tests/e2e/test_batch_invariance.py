"""One request's tokens and logits are the same bits alone and in any crowd.

Random mixes of 1 to 64 requests, arriving at random steps, with prompts that share beginnings and
are cut into chunks of any size, in caches so small that requests are paused, on one thread and on
two, against each request alone on one thread. Every weight type and scheme on every target that
this machine can run: the whole is a sweep, a corner of it runs by default. The sample briefly.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.compare import assert_same_bits
from tests.conftest import MakeTinyLlama, Sample
from tests.recording_executor import RecordingExecutor
from tests.runnable_targets import TARGETS
from tests.scheme_losses import CACHES, build_flags
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.base.target import NAME_TO_TARGET
from tidemill.quant.schemes import NAME_TO_SCHEME, NONE, SCHEMES
from tidemill.runtime.config import (
    DEFAULT_CONFIG,
    CapacityPolicy,
    ChunkingPolicy,
    RuntimeConfig,
)
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.loop_stats import LoopStats
from tidemill.runtime.request import Request, SamplingParams

SEED = 20261124
TINY = TinyLlama(head_size=16)
# Sizes that groups divide; two layers, so that a pause comes between caches that are filled.
GROUPED_TINY = {
    32: replace(TINY, hidden_size=96, intermediate_size=160),
    64: replace(TINY, num_heads=4, hidden_size=192, intermediate_size=128),
    128: replace(TINY, num_heads=8, hidden_size=128, intermediate_size=256),
}
TYPES = (
    ("float32", "none"),
    ("float16", "none"),
    ("bfloat16", "none"),
    ("float32", "fp8"),
    *(("bfloat16", scheme.name) for scheme in SCHEMES if scheme != NONE),
    *((dtype, cache) for dtype in ("float16", "bfloat16") for cache in CACHES),
)
BEST, *LESSER = TARGETS
CORNER = {
    *((BEST, *types) for types in TYPES[:3]),
    *(
        (BEST, "bfloat16", name)
        for name in ("w12a16", "w8a8", "fp8", "w4a8_g32", "w4a16_g32_sym", "kv_int8")
    ),
    (BEST, "float16", "kv_fp8"),
    *((target, "bfloat16", name) for target in LESSER for name in ("none", "w8a8")),
}
CASES = [
    pytest.param(target, *types, marks=() if (target, *types) in CORNER else pytest.mark.sweep)
    for target in TARGETS
    for types in TYPES
]
MIX_SIZES = (64, 1, 2, 31, 13)
# Around the attention's chunk of 64 positions, the blocks of 16, and the tiles of 14, 12 and 2.
PROMPT_LENGTHS = (1, 2, 3, 13, 15, 16, 17, 31, 33, 63, 64, 65, 97, 129, 150)
SMALL_CACHE_BLOCKS = 24  # two of the longest requests, where 64 want to run

Tokens = dict[int, list[int]]
MakeEngine = Callable[[str, str, str], Path]


@pytest.fixture(scope="module")
def make_engine(
    make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory
) -> MakeEngine:
    @cache
    def make(dtype: str, target: str, quant: str) -> Path:
        directory = tmp_path_factory.mktemp(f"{dtype}_{target}_{quant}")
        checkpoint, engine = directory / "checkpoint", directory / "engine"
        weight = None if quant in CACHES else NAME_TO_SCHEME[quant].weight
        shape = GROUPED_TINY[weight.group_size] if weight and weight.group_size else TINY
        convert(ConvertRequest(make_tiny_llama(shape), checkpoint, dtype=dtype))
        build(
            BuildRequest(
                checkpoint,
                engine,
                max_batch_size=64,
                max_seq_len=192,
                max_num_tokens=256,
                tokens_per_block=16,
                target=target,
                **build_flags(quant),
            )
        )
        return engine

    return make


def random_requests(
    chance: random.Random, count: int, vocab_size: int, lengths: Sequence[int], most_new: int
) -> list[Request]:
    """Greedy and sampling requests that share beginnings; ids are their places in the list."""
    shared = [[chance.randrange(vocab_size) for _ in range(max(lengths))] for _ in range(3)]

    def prompt() -> tuple[int, ...]:
        length = chance.choice(lengths)
        begin = chance.choice(shared)[: chance.choice([0, length // 2, length - 1])]
        return (*begin, *(chance.randrange(vocab_size) for _ in range(length - len(begin))))

    settings = [
        SamplingParams(),
        SamplingParams(temperature=0.9, top_k=0, seed=3),
        SamplingParams(temperature=1.4, top_k=20, top_p=0.8, seed=2**63),
    ]
    return [
        Request(
            number,
            prompt(),
            chance.randint(1, most_new),
            chance.choice(settings),
        )
        for number in range(count)
    ]


def run_mix(
    executor: RecordingExecutor,
    requests: Sequence[Request],
    chance: random.Random,
    config: RuntimeConfig = DEFAULT_CONFIG,
) -> tuple[Tokens, LoopStats]:
    """Run requests that arrive at random steps; returns the tokens of each."""
    loop = Loop(executor, config)
    waiting = list(requests)
    tokens: Tokens = {request.request_id: [] for request in requests}
    while waiting or loop.has_work:
        for _ in range(min(len(waiting), chance.choice([0, 0, 1, 2, 9]))):
            loop.submit(waiting.pop(0))
        for update in loop.step():
            tokens[update.request_id] += update.new_tokens
        loop.check()
    return tokens, loop.stats()


def run_alone(executor: RecordingExecutor, requests: Sequence[Request]) -> Tokens:
    tokens: Tokens = {}
    for request in requests:
        tokens |= run_mix(executor, [request], random.Random(0))[0]
    assert executor.most_entries == 1
    return tokens


def assert_same(alone: RecordingExecutor, crowd: RecordingExecutor, numbers: set[int]) -> None:
    expected = {key: row for key, row in alone.logits.items() if key[0] in numbers}
    assert crowd.logits.keys() == expected.keys()
    for key, row in expected.items():
        assert_same_bits(crowd.logits[key], row, f"logits of request, position {key}")


def random_regime(
    executor: NativeExecutor, chance: random.Random
) -> tuple[RecordingExecutor, RuntimeConfig]:
    """Limits of batch, step and cache, and policies, as chance will have them."""
    batch = chance.choice([1, 3, 32, 64])
    most = max(batch, chance.choice([batch, batch + 1, 47, 63, 100, 256]))
    blocks = chance.choice([SMALL_CACHE_BLOCKS, executor.limits.num_blocks])
    crowd = RecordingExecutor(
        executor, max_batch_size=batch, max_num_tokens=most, num_blocks=blocks
    )
    chunkings = (ChunkingPolicy.FIRST_COME_FIRST_SERVED, ChunkingPolicy.EQUAL_PROGRESS)
    return crowd, RuntimeConfig(chance.choice(list(CapacityPolicy)), chance.choice(chunkings))


@pytest.mark.parametrize(("target", "dtype", "quant"), CASES)
def test_crowd_chunks_pauses_hits_and_threads_change_no_bit(
    target: str, dtype: str, quant: str, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {SEED}")
    monkeypatch.setitem(NAME_TO_TARGET, target, TARGETS[target])
    chance = random.Random(f"{SEED} {target} {dtype} {quant}")
    engine = make_engine(dtype, target, quant)
    requests = random_requests(chance, 64, TINY.vocab_size, PROMPT_LENGTHS, most_new=24)
    single = NativeExecutor.load(engine, kv_cache_tokens=8192, num_threads=1)
    double = NativeExecutor.load(engine, kv_cache_tokens=2048, num_threads=2)
    alone = RecordingExecutor(single)
    tokens_alone = run_alone(alone, requests)
    # Pauses for certain: all at once in a cache for two.
    crowded = RecordingExecutor(double, num_blocks=SMALL_CACHE_BLOCKS)
    paused = RuntimeConfig(CapacityPolicy.MAX_UTILIZATION, max_step_ms=0)
    tokens, stats = run_mix(crowded, requests, chance, paused)
    assert stats.total_paused_requests > 0 and stats.reused_blocks > 0
    assert tokens == tokens_alone
    assert_same(alone, crowded, set(tokens_alone))
    for size in MIX_SIZES:
        chosen = chance.sample(requests, size)
        numbers = {request.request_id for request in chosen}
        for executor in (single, double):
            crowd, config = random_regime(executor, chance)
            tokens, _ = run_mix(crowd, chosen, chance, config)
            assert tokens == {number: tokens_alone[number] for number in numbers}
            assert_same(alone, crowd, numbers)
    single.close()
    double.close()


@pytest.mark.parametrize("num_threads", [3, 8, 9, 17, 64])
def test_teams_larger_than_the_machine_give_the_same_bits(
    num_threads: int, make_engine: MakeEngine
) -> None:
    engine = make_engine("bfloat16", BEST, "w8a8")
    requests = random_requests(random.Random(SEED), 4, TINY.vocab_size, (3, 65), most_new=3)
    single = NativeExecutor.load(engine, kv_cache_tokens=1024, num_threads=1)
    team = NativeExecutor.load(
        engine, kv_cache_tokens=1024, num_threads=num_threads, pin_threads=num_threads == 9
    )
    alone, crowd = RecordingExecutor(single), RecordingExecutor(team, max_num_tokens=50)
    tokens_alone = run_alone(alone, requests)
    before = os.sched_getaffinity(0)
    assert run_mix(crowd, requests, random.Random(SEED))[0] == tokens_alone
    assert_same(alone, crowd, set(tokens_alone))
    single.close()
    team.close()
    assert os.sched_getaffinity(0) == before


def test_cores_that_were_taken_away_stop_nothing(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: int, cpus: set[int]) -> None:
        raise OSError(errno.EINVAL, "no such CPU")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    engine = make_engine("bfloat16", BEST, "w8a8")
    team = NativeExecutor.load(engine, kv_cache_tokens=256, num_threads=2, pin_threads=True)
    tokens, _ = run_mix(RecordingExecutor(team), [Request(0, (5, 7), 3)], random.Random(0))
    assert len(tokens[0]) == 3
    team.close()


def test_caller_that_flushes_subnormal_numbers_changes_no_bit(make_engine: MakeEngine) -> None:
    engine = make_engine("float32", BEST, "fp8")
    requests = random_requests(random.Random(SEED), 2, TINY.vocab_size, (9, 17), most_new=3)
    executor = NativeExecutor.load(engine, kv_cache_tokens=1024, num_threads=1)
    usual, flushed = RecordingExecutor(executor), RecordingExecutor(executor)
    tokens = run_alone(usual, requests)
    assert torch.set_flush_denormal(True)
    try:
        assert run_alone(flushed, requests) == tokens
    finally:
        torch.set_flush_denormal(False)
    assert_same(usual, flushed, set(tokens))
    executor.close()


def test_sample_in_a_crowd_gives_the_bits_it_gives_alone(sample: Sample) -> None:
    chance = random.Random(SEED)
    requests = random_requests(chance, 8, 49152, (17, 65, 130), most_new=6)
    single = NativeExecutor.load(sample.engine, kv_cache_tokens=2048, num_threads=1)
    double = NativeExecutor.load(sample.engine, kv_cache_tokens=2048, num_threads=2)
    alone = RecordingExecutor(single)
    tokens_alone = run_alone(alone, requests)
    crowd = RecordingExecutor(double, max_num_tokens=37)
    assert run_mix(crowd, requests, chance)[0] == tokens_alone
    assert_same(alone, crowd, set(tokens_alone))
    assert crowd.most_entries > 2 and crowd.num_chunks > 2
    single.close()
    double.close()
