"""One engine in a process of its own, driven by the lines of runners/runner.py.

The process ends with its driver, whatever becomes of that. A peer that is not installed here, or
whose model file was not made, is told by `absence`, so that a table can say so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.engines import EngineRow, environment_of, peers_dir

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Load:
    """How engines are loaded, all alike. Units: requests at once, tokens of each."""

    threads: int
    max_requests: int
    max_tokens: int


def python_of(row: EngineRow) -> Path:
    """Return the interpreter that has the engine's packages."""
    if row.is_ours:
        return Path(sys.executable)
    return peers_dir() / row.home / "env" / "bin" / "python"


def absence(row: EngineRow, model_dir: Path) -> str:
    """Say why an engine cannot be run here; empty where it can."""
    if not python_of(row).exists():
        return f"not installed: python -m bench.peers.environments {row.home}"
    if not (model_dir / row.file).exists():
        return f"no {row.file}: python -m bench.peers.models"
    return ""


class RunnerProcess:
    """A loaded engine. Raises RuntimeError with the end of its log when it dies."""

    def __init__(self, row: EngineRow, model_dir: Path, load: Load) -> None:
        self.row = row
        self._log = (model_dir / f"{row.file}.log").open("w+b")
        # Not in a session of its own: it keeps the priority that its driver was given.
        self._process = subprocess.Popen(
            [str(python_of(row)), "-m", f"bench.peers.runners.run_{row.home}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**environment_of(row.home, load.threads), "PYTHONPATH": str(ROOT)},
            text=True,
        )
        self.loaded = self._ask(do="load", model=str(model_dir / row.file), **vars(load))

    def generate(self, prompts: list[list[int]], lengths: list[int]) -> dict[str, Any]:
        """Answer all prompts at once; returns the runner's line."""
        return self._ask(do="generate", prompts=prompts, lengths=lengths)

    def close(self) -> None:
        """End the process and free its memory."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _ask(self, **asked: object) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            end = self._log.read()[-2000:].decode("utf-8", "replace")
            self.close()
            raise RuntimeError(f"{self.row.name} died:\n{end}")
        said: dict[str, Any] = json.loads(line)
        return said
