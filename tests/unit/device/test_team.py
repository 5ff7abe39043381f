"""A team's threads and callers: where they run, the CPUs they get back, what they write to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np
import pytest

from tidemill.base import abi
from tidemill.base.cpus import physical_cpus
from tidemill.base.target import host_targets
from tidemill.codegen.compile import compile_module
from tidemill.codegen.isa import isa_for
from tidemill.codegen.module import Module
from tidemill.codegen.spmd import emit_team
from tidemill.device.cpu import LoadedCode, MeasuringTeam, Team, allocate

NO_RECORDS = np.zeros((0, abi.RECORD_WORDS), np.int64)
ALLOWED = os.sched_getaffinity(0)
CORES = physical_cpus()

pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="one core leaves no choice")


@pytest.fixture(scope="module")
def code() -> LoadedCode:
    isa, module = isa_for(host_targets()[0]), Module()
    emit_team(module, isa)
    image = compile_module(module, isa)
    return LoadedCode(image.data, image.entry_offsets)


def worker_cpus(team: Team) -> set[int]:
    (worker,) = team._threads
    assert worker.native_id
    return os.sched_getaffinity(worker.native_id)


def in_a_thread(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_measuring_leaves_the_caller_where_it_may_be(code: LoadedCode) -> None:
    for _ in range(2):
        team = MeasuringTeam(code, NO_RECORDS, 2)
        team.step()
        assert worker_cpus(team) == {CORES[1]}
        assert os.sched_getaffinity(0) == ALLOWED
        team.close()
        assert os.sched_getaffinity(0) == ALLOWED


def test_every_caller_gets_its_cpus_back_whoever_closes(code: LoadedCode) -> None:
    team = Team(code, NO_RECORDS, 2, CORES)
    has_stepped, is_closed = threading.Event(), threading.Event()
    at_end: list[set[int]] = []

    def step_and_wait() -> None:
        team.step()
        has_stepped.set()
        is_closed.wait()
        at_end.append(os.sched_getaffinity(0))

    other = threading.Thread(target=step_and_wait)
    other.start()
    has_stepped.wait()
    team.step()
    assert os.sched_getaffinity(0) == {CORES[0]}
    in_a_thread(team.close)
    is_closed.set()
    other.join()
    assert [os.sched_getaffinity(0), *at_end] == [ALLOWED, ALLOWED]


def test_counted_cycles_have_one_array_for_good(code: LoadedCode) -> None:
    # A worker writes its last wait when the caller may already have dropped what it was given.
    team = Team(code, np.zeros((3, abi.RECORD_WORDS), np.int64), 2)
    first = team.profile()
    first[:] = 7
    assert team.profile() is first and not first.any()
    team.close()


def test_a_second_team_of_a_kept_caller_has_all_cores(code: LoadedCode) -> None:
    first = Team(code, NO_RECORDS, 2, CORES)
    first.step()
    assert physical_cpus() == CORES
    free, second = Team(code, NO_RECORDS, 2), Team(code, NO_RECORDS, 2, physical_cpus())
    free.step()
    second.step()
    assert (worker_cpus(free), worker_cpus(second)) == (ALLOWED, {CORES[1]})
    first.close()
    assert os.sched_getaffinity(0) == {CORES[0]}, "the second team still keeps it"
    second.close()
    free.close()
    assert os.sched_getaffinity(0) == ALLOWED


@pytest.mark.parametrize("size_bytes", [1 << 62, 1 << 70])
def test_memory_beyond_any_machine_is_refused_as_any_other(size_bytes: int) -> None:
    with pytest.raises(OSError, match="Cannot allocate memory"):
        allocate(size_bytes)
