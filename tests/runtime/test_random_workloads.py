"""Random arrivals, cancellations, time-outs, priorities and tiny pools, judged by an oracle.

A part of the run of 100,000 steps that `python -m tests.runtime.workload 100000` makes.
"""

from __future__ import annotations

import pytest

from tests.runtime.workload import run_seed


@pytest.mark.parametrize("seed", range(40))
def test_random_workload_gives_each_request_its_tokens_alone(seed: int) -> None:
    assert run_seed(seed).num_ended > 0
