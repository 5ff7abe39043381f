"""Real requests in random mixes on a tiny real engine, each judged by its tokens alone.

Prompts share beginnings, so blocks are found again and copied; policies, chunkings, guesses, seeds
and priorities are mixed, some requests are cancelled. Memory is watched. The whole run:

    python -m tests.e2e.many_requests 10000
"""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tests.tiny_llama import TinyLlama, write_tiny_llama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.runtime.config import CapacityPolicy, ChunkingPolicy, RuntimeConfig
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import FinishReason, Request, SamplingParams

NUM_KINDS = 250
CACHE_TOKENS = 40 * 16
MIXES = [
    RuntimeConfig(policy, chunking, max_draft_len=draft_len)
    for policy in CapacityPolicy
    for chunking in (ChunkingPolicy.FIRST_COME_FIRST_SERVED, ChunkingPolicy.EQUAL_PROGRESS)
    for draft_len in (0, 3)
]


def build_tiny_engine(directory: Path) -> Path:
    """Write, convert and build a tiny random model."""
    model = directory / "model"
    model.mkdir()
    write_tiny_llama(TinyLlama(head_size=16), model)
    convert(ConvertRequest(model, directory / "checkpoint", dtype="bfloat16"))
    request = BuildRequest(
        directory / "checkpoint",
        directory / "engine",
        max_batch_size=9,
        max_input_len=100,
        max_seq_len=128,
        max_num_tokens=48,
        tokens_per_block=16,
    )
    return build(request).engine_dir


def random_kinds(seed: int) -> list[Request]:
    """Draw the requests that are asked again and again."""
    draw = random.Random(seed)
    shared = [tuple(draw.randrange(3, 263) for _ in range(90)) for _ in range(4)]
    kinds = []
    for number in range(NUM_KINDS):
        begin = draw.choice(shared)[: draw.choice([0, 1, 15, 16, 17, 32, 40, 64, 90])]
        own = tuple(draw.randrange(3, 263) for _ in range(draw.randint(1, 9)))
        sampling = draw.choice(
            [SamplingParams(), SamplingParams(1.0, 0, 0.9, number), SamplingParams(0.7, 5, 1.0, 3)]
        )
        kinds.append(
            Request(number, begin + own, draw.choice([1, 2, 8, 25]), sampling, end_ids=(1,))
        )
    return kinds


def tokens_alone(executor: NativeExecutor, kinds: list[Request]) -> list[tuple[int, ...]]:
    """Run each request by itself, without a cache that remembers."""
    alone = []
    for request in kinds:
        loop = Loop(executor, RuntimeConfig(enable_block_reuse=False))
        loop.submit(request)
        output: list[int] = []
        while loop.has_work:
            for update in loop.step():
                output.extend(update.new_tokens)
        alone.append(tuple(output))
    return alone


@dataclass
class Outcome:
    """What a run showed. Units: bytes of resident memory."""

    num_ended: int = 0
    num_cancelled: int = 0
    num_reused_blocks: int = 0
    num_pauses: int = 0
    num_accepted: int = 0
    early_bytes: int = 0
    late_bytes: int = 0


class Mix:
    """One runtime config with requests in flight."""

    def __init__(
        self, executor: NativeExecutor, config: RuntimeConfig, draw: random.Random, first_id: int
    ) -> None:
        self.loop, self.random, self.next_id = Loop(executor, config), draw, first_id
        self.id_to_kind: dict[int, int] = {}
        self.outputs: dict[int, list[int]] = {}
        self.cancelled: set[int] = set()

    def run(self, kinds: list[Request], alone: list[tuple[int, ...]], count: int) -> Outcome:
        outcome, last_id = Outcome(), self.next_id + count
        while self.next_id < last_id or self.loop.has_work:
            while self.next_id < last_id and self.random.random() < 0.6:
                self.arrive(kinds)
            if self.outputs and self.random.random() < 0.02:
                self.cancelled.add(request_id := self.random.choice(list(self.outputs)))
                self.loop.cancel(request_id)
            for update in self.loop.step():
                self.outputs[update.request_id].extend(update.new_tokens)
                if update.finish_reason is not FinishReason.NOT_FINISHED:
                    self.judge(update.request_id, update.finish_reason, alone)
                    outcome.num_ended += 1
        self.loop.check()
        stats = self.loop.stats()
        outcome.num_cancelled = stats.total_cancelled_requests
        outcome.num_reused_blocks = stats.reused_blocks
        outcome.num_pauses = stats.total_paused_requests
        outcome.num_accepted = stats.total_accepted_draft_tokens
        return outcome

    def arrive(self, kinds: list[Request]) -> None:
        kind = self.random.randrange(len(kinds))
        priority = self.random.choice([0.5, 0.5, 0.9])
        self.loop.submit(replace(kinds[kind], request_id=self.next_id, priority=priority))
        self.id_to_kind[self.next_id] = kind
        self.outputs[self.next_id] = []
        self.next_id += 1

    def judge(self, request_id: int, reason: FinishReason, alone: list[tuple[int, ...]]) -> None:
        output = tuple(self.outputs.pop(request_id))
        expected = alone[self.id_to_kind.pop(request_id)]
        if reason is FinishReason.CANCELLED:
            assert request_id in self.cancelled and output == expected[: len(output)]
        else:
            assert output == expected, f"request {request_id} in a crowd differs from alone"


def run_mixes(executor: NativeExecutor, num_requests: int, seed: int = 1) -> Outcome:
    """Run requests in all mixes, in turns of a hundred."""
    draw, total = random.Random(seed), Outcome()
    kinds = random_kinds(seed)
    alone = tokens_alone(executor, kinds)
    turn = 0
    while total.num_ended < num_requests:
        count = min(100, num_requests - total.num_ended)
        mix = Mix(executor, MIXES[turn % len(MIXES)], draw, total.num_ended)
        outcome = mix.run(kinds, alone, count)
        total.num_ended += outcome.num_ended
        total.num_cancelled += outcome.num_cancelled
        total.num_reused_blocks += outcome.num_reused_blocks
        total.num_pauses += outcome.num_pauses
        total.num_accepted += outcome.num_accepted
        turn += 1
        if turn == len(MIXES):
            total.early_bytes = resident_bytes()
    total.late_bytes = resident_bytes()
    return total


def resident_bytes() -> int:
    """Tell how much memory this process holds."""
    gc.collect()
    pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        engine_dir = build_tiny_engine(Path(scratch))
        executor = NativeExecutor.load(engine_dir, kv_cache_tokens=CACHE_TOKENS)
        print(run_mixes(executor, int(sys.argv[1])), f"{time.monotonic() - start:.0f} s")
        executor.close()


if __name__ == "__main__":
    main()
