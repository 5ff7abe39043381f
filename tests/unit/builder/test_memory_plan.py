"""Every memory plan passes the independent verifier, and the verifier finds every kind of fault."""

from __future__ import annotations

import random

import pytest

from tidemill.base.errors import BuildError
from tidemill.builder.memory_plan import (
    BufferRequest,
    MemoryPlan,
    lower_bound_bytes,
    plan_memory,
)
from tidemill.builder.verify_memory_plan import verify_memory_plan

SIZES_BYTES = (0, 1, 63, 64, 65, 127, 128, 4096, 10007)


def random_requests(rng: random.Random, num_buffers: int, num_ops: int) -> list[BufferRequest]:
    requests = []
    for index in range(num_buffers):
        first, last = sorted(rng.choices(range(num_ops), k=2))
        requests.append(BufferRequest(f"b{index}", rng.choice(SIZES_BYTES), first, last))
    return requests


@pytest.mark.parametrize("seed", range(60))
def test_random_plan_passes_the_verifier(seed: int) -> None:
    rng = random.Random(seed)
    requests = random_requests(rng, rng.choice([0, 1, 2, 7, 31, 61]), rng.choice([1, 2, 13, 97]))

    plan = plan_memory(requests)

    verify_memory_plan(requests, plan)
    bound = lower_bound_bytes(requests)
    print(f"seed {seed}: {len(requests)} buffers, {plan.total_bytes} bytes, at least {bound}")
    assert bound <= plan.total_bytes <= 1.5 * bound


@pytest.mark.parametrize("seed", range(20))
def test_plan_does_not_depend_on_the_order_of_requests(seed: int) -> None:
    rng = random.Random(seed)
    requests = random_requests(rng, 23, 17)
    plan = plan_memory(requests)
    rng.shuffle(requests)
    assert plan_memory(requests) == plan


def test_chain_of_equal_buffers_needs_two_places() -> None:
    chain = [BufferRequest(f"b{i}", 1000, i, i + 1) for i in range(101)]
    plan = plan_memory(chain)
    verify_memory_plan(chain, plan)
    assert plan.total_bytes == lower_bound_bytes(chain) == 2048


def test_tightest_gap_is_taken() -> None:
    # When c comes, two gaps are free: [512, 832) below middle and [1024, 1152) below top.
    requests = [
        BufferRequest("big", 512, 0, 9),
        BufferRequest("gone", 320, 0, 3),
        BufferRequest("middle", 192, 0, 9),
        BufferRequest("gone_too", 128, 0, 3),
        BufferRequest("top", 96, 0, 9),
        BufferRequest("c", 65, 4, 9),
    ]
    plan = plan_memory(requests)
    assert plan.offsets["gone"] == 512
    assert plan.offsets["middle"] == 832
    assert plan.offsets["gone_too"] == 1024
    assert plan.offsets["c"] == 1024


def test_no_buffers_need_no_memory() -> None:
    plan = plan_memory([])
    verify_memory_plan([], plan)
    assert plan == MemoryPlan({}, 0)


def test_buffers_that_touch_in_one_op_do_not_share() -> None:
    requests = [BufferRequest("x", 64, 0, 1), BufferRequest("y", 64, 1, 2)]
    assert plan_memory(requests).total_bytes == 128


X_AND_Y = [BufferRequest("x", 100, 0, 1), BufferRequest("y", 100, 1, 2)]


@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        (MemoryPlan({"x": 0, "y": 64}, 164), "x and y overlap by 36 bytes in ops 1..1"),
        (MemoryPlan({"x": 64, "y": 0}, 164), "y and x overlap by 36 bytes in ops 1..1"),
        (MemoryPlan({"x": 0, "y": 0}, 100), "overlap by 100 bytes"),
        (MemoryPlan({"x": 0, "y": 104}, 204), "y is misaligned at 104"),
        (MemoryPlan({"x": -64, "y": 128}, 228), "x is misaligned at -64"),
        (MemoryPlan({"x": 0, "y": 128}, 227), "the total is 227 bytes"),
        (MemoryPlan({"x": 0, "y": 128}, 292), "the total is 292 bytes"),
        (MemoryPlan({"x": 0}, 128), "y has no place"),
        (MemoryPlan({"x": 0, "y": 128, "z": 256}, 256), "z was never requested"),
    ],
)
def test_verifier_names_the_fault(plan: MemoryPlan, fault: str) -> None:
    with pytest.raises(BuildError, match=fault):
        verify_memory_plan(X_AND_Y, plan)


def test_verifier_lists_all_faults_at_once() -> None:
    requests = [BufferRequest(name, 100, 0, 1) for name in "abc"]
    with pytest.raises(BuildError) as caught:
        verify_memory_plan(requests, MemoryPlan({"a": 0, "b": 0, "c": 8}, 108))
    text = str(caught.value)
    assert text.count("overlap") == 4  # three faults and the expectation
    assert "c is misaligned" in text


def test_verifier_rejects_two_requests_of_one_name() -> None:
    requests = [BufferRequest("x", 1, 0, 0), BufferRequest("x", 1, 1, 1)]
    with pytest.raises(BuildError, match="x is requested twice"):
        verify_memory_plan(requests, MemoryPlan({"x": 0}, 64))
