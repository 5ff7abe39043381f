"""Weights in huge pages are the file's weights, and no copy is made where memory is short."""

from __future__ import annotations

import ctypes
import errno
import math
from pathlib import Path

import numpy as np
import pytest

from tidemill.device import cpu
from tidemill.device.cpu import address_of
from tidemill.runtime.executor import free_memory, weights_memory
from tidemill.runtime.executor.weights_memory import WeightsMemory

PIECE = 2 << 20
NOW, LATER = 0.0, math.inf


def must_not_forget(first: int, size: int) -> None:
    raise AssertionError("pages that are still computed with were forgotten")


def random_bytes(count: int) -> cpu.Bytes:
    return np.random.default_rng(count).integers(0, 256, count, dtype=np.uint8)


@pytest.mark.parametrize("num_bytes", [1, 4097, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 1])
def test_moved_weights_are_the_same_bytes(num_bytes: int) -> None:
    mapped = random_bytes(num_bytes)
    forgotten: list[tuple[int, int]] = []
    weights = WeightsMemory(mapped, [num_bytes], 2, lambda *piece: forgotten.append(piece))
    assert weights.address(0) == address_of(mapped)
    assert not weights.move(LATER)
    assert weights.address(0) != address_of(mapped)
    assert ctypes.string_at(weights.address(0), num_bytes) == mapped.tobytes()
    assert sum(size for _, size in forgotten) == num_bytes
    assert all(first % 4096 == 0 for first, _ in forgotten)


def test_a_weight_is_read_in_the_file_until_all_of_it_is_moved() -> None:
    ends = [PIECE // 2, PIECE + 5, 2 * PIECE, 3 * PIECE]
    mapped = random_bytes(ends[-1])
    weights = WeightsMemory(mapped, reversed(ends), 1, lambda first, size: None)
    before = [weights.address(end - 1) for end in ends]
    assert before == [address_of(mapped) + end - 1 for end in ends]
    for num_moved in (1, 2, 3, 4):
        assert weights.move(NOW) == (num_moved < 4)
        now = [weights.address(end - 1) for end in ends]
        assert now[num_moved:] == before[num_moved:]
        assert not set(now[:num_moved]) & set(before)
        for address, end in zip(now, ends, strict=True):
            assert ctypes.string_at(address, 1) == mapped[end - 1].tobytes()
    assert not weights.move(NOW)


def test_a_large_weight_is_moved_at_once_and_small_ones_together() -> None:
    ends = [100, 200, 300, 300 + 3 * PIECE, 300 + 3 * PIECE + 64]
    mapped, forgotten = random_bytes(ends[-1]), list[int]()
    weights = WeightsMemory(mapped, ends, 2, lambda first, size: forgotten.append(first))
    moved: list[int] = []
    while weights.move(NOW):
        moved.append(sum(weights.address(end - 1) != address_of(mapped) + end - 1 for end in ends))
    # Two threads: each takes one piece at least, and all of a weight that it began.
    assert set(moved) <= {3, 4}
    assert sorted(forgotten) == [0, 300, 300 + PIECE, 300 + 2 * PIECE, 300 + 3 * PIECE]


def test_short_memory_keeps_the_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 64 kB\nMemAvailable: 15 kB\n")
    monkeypatch.setattr(free_memory, "_MEMORY", meminfo)
    mapped = np.zeros(4096, np.uint8)
    weights = WeightsMemory(mapped, [4096], 2, must_not_forget)
    assert not weights.move(LATER)
    assert weights.address(1) == address_of(mapped) + 1


def test_memory_that_is_refused_keeps_the_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size_bytes: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(weights_memory, "allocate", refuse)
    mapped = np.zeros(4096, np.uint8)
    weights = WeightsMemory(mapped, [4096], 2, must_not_forget)
    assert not weights.move(LATER)
    assert weights.address(1) == address_of(mapped) + 1


def test_free_memory_is_told_where_the_kernel_does_not_reckon_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_memory, "_MEMORY", tmp_path / "nowhere")
    assert free_memory.free_bytes() > 0


def test_system_without_huge_pages_keeps_the_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]")
    monkeypatch.setattr(cpu, "_HUGE_PAGES", setting)
    mapped = np.zeros(1, np.uint8)
    weights = WeightsMemory(mapped, [1], 2, must_not_forget)
    assert not weights.move(LATER)
    assert weights.address(0) == address_of(mapped)
