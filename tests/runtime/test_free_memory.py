"""A container's limit is its machine's memory: for what is free, and for the cache's size."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tidemill.base.dtypes import DType
from tidemill.engine.manifest import KvLayout
from tidemill.runtime.executor import cache_size, free_memory

MIB = 1 << 20
STAT = f"anon {MIB}\nactive_file {200 * MIB}\ninactive_file {100 * MIB}\n"
V1_STAT = f"active_file 1\ntotal_active_file {8 * MIB}\ntotal_inactive_file {24 * MIB}\n"
V2 = {"memory.max": 2048 * MIB, "memory.current": 700 * MIB, "memory.stat": STAT}


def lay(directory: Path, own: str, files: dict[str, object]) -> tuple[Path, Path]:
    (directory / "own").write_text(own)
    for name, text in files.items():
        path = directory / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return directory / "root", directory / "own"


@pytest.mark.parametrize(
    ("own", "files", "total", "free"),
    [
        ("0::/\n", V2, 2048, 1648),
        ("0::/\n", V2 | {"memory.high": 1024 * MIB}, 1024, 624),
        ("0::/\n", V2 | {"memory.current": 2500 * MIB}, 2048, 0),
        ("0::/\n", {"memory.max": 2048 * MIB}, 2048, 2048),
        # A service without a limit of its own, in a slice that has one.
        ("0::/a/b\n", {"a/b/memory.max": "max"} | {f"a/{n}": v for n, v in V2.items()}, 2048, 1648),
        # A container that sees the host's name of its group, but its own group mounted.
        (
            "4:memory:/docker/0a1b\n1:cpu:/\n",
            {
                "memory/memory.limit_in_bytes": 512 * MIB,
                "memory/memory.usage_in_bytes": 64 * MIB,
                "memory/memory.stat": V1_STAT,
            },
            512,
            480,
        ),
    ],
)
def test_limits_of_both_versions_of_control_groups(
    own: str, files: dict[str, object], total: int, free: int, tmp_path: Path
) -> None:
    groups = lay(tmp_path, own, files)
    assert free_memory.total_bytes(*groups) == total * MIB
    assert free_memory.free_bytes(*groups) == free * MIB


def test_without_limits_the_machine_is_all_there_is(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 64 kB\nMemAvailable: 15 kB\n")
    unbound = lay(tmp_path, "0::/\n", {"memory.max": "max", "memory.current": MIB})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(free_memory, "_MEMORY", tmp_path / "meminfo")
        assert free_memory.free_bytes(*unbound) == 15 * 1024
    assert free_memory.total_bytes(*unbound) > 15 * 1024


@pytest.mark.parametrize(("fraction", "most_mib"), [(None, 205), (0.5, (1648 - 600) / 2)])
def test_cache_fits_a_container(
    fraction: float | None, most_mib: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = lay(tmp_path, "0::/\n", V2)
    for name in ("total_bytes", "free_bytes"):
        monkeypatch.setattr(cache_size, name, partial(getattr(free_memory, name), *groups))
    kv = KvLayout(30, 3, 64, 32, DType.BF16)
    limits = {"max_batch_size": 256, "max_seq_len": 2048, "max_num_tokens": 2048}
    engine = SimpleNamespace(
        config={"build_config": limits},
        manifest=SimpleNamespace(kv=kv, arena_bytes=100 * MIB),
        weights=SimpleNamespace(nbytes=500 * MIB),
    )
    tokens = cache_size.choose_cache_tokens(cast(Any, engine), fraction)
    assert tokens > 2048
    assert most_mib - 1 < tokens * kv.bytes_per_token / MIB <= most_mib
