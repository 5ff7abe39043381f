"""How many CPUs control groups leave a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.base import cpus
from tidemill.host.config import SessionConfig


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        # A service of a slice: its parent's quota is the smaller one.
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        # A container that sees the host's name of its group, but its own group mounted.
        ("0::/host/pod\n", {"cpu.max": "50000 100000\n"}, 0.5),
        (
            "5:memory:/m\n1:cpu,cpuacct:/pod\n",
            {"cpu/pod/cpu.cfs_quota_us": "300000\n", "cpu/pod/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_quota_of_both_versions_of_control_groups(
    own: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpus.cpu_quota(tmp_path / "root", tmp_path / "own") == quota


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.5, 2), (3.0, 3), (64.0, 8), (None, 8)])
def test_a_quota_bounds_threads_and_keeps_none_in_place(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "physical_cpus", lambda: tuple(range(8)))
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    monkeypatch.setattr("tidemill.host.config.cpu_quota", lambda: quota)
    assert cpus.num_physical_cores() == cores
    assert SessionConfig().in_own_process.pin_threads is (quota is None)
