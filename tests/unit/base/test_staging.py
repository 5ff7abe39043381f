"""Directories that appear when they are complete, and what is left of those that never did."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tidemill.base.staging import StagedDirectory

KILLED = """
import os, sys
from pathlib import Path
from tidemill.base.staging import StagedDirectory
(StagedDirectory(Path(sys.argv[1])).path / "file").touch()
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_makes_is_not(
    tmp_path: Path,
) -> None:
    target = tmp_path / "engine"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with StagedDirectory(target) as first:
        assert list(tmp_path.iterdir()) == [first.path] != [left]
        with StagedDirectory(target) as second:
            assert first.path.exists()
            second.publish()
        first.publish()
    assert list(tmp_path.iterdir()) == [target]


def test_copy_that_was_moved_away_is_kept_until_another_stands(tmp_path: Path) -> None:
    target, retired = tmp_path / "engine", tmp_path / ".engine.old-1-0123abcd"
    retired.mkdir()
    with StagedDirectory(target) as staged:
        assert retired.exists()
        staged.publish()
    with StagedDirectory(target):
        assert not retired.exists()


def test_those_who_publish_the_same_name_at_once_all_succeed(tmp_path: Path) -> None:
    target = tmp_path / "engine"

    def publish_often(number: int) -> None:
        for _ in range(50):
            with StagedDirectory(target) as staged:
                (staged.path / "file").write_text(str(number))
                staged.publish()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(publish_often, range(4)))
    assert list(tmp_path.iterdir()) == [target] and (target / "file").exists()
