"""What the engines reached: samples, versions and absences, kept as JSON lines between runs."""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.parts.figures import commit, machine
from bench.peers.engines import ROWS, EngineRow

_NAME_TO_ROW = {row.name: row for row in ROWS}


@dataclass(frozen=True)
class Sample:
    """One timing; `value` is tokens per second, or seconds where the case says so."""

    model: str
    row: EngineRow
    case: str
    value: float


@dataclass(frozen=True)
class Absence:
    """An engine that could not be run here, and why."""

    model: str
    engine: str
    reason: str


class Results:
    """All samples of one or more runs on one machine."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.absences: dict[tuple[str, str], Absence] = {}
        self.engine_to_version: dict[str, str] = {}
        self.machines, self.commits, self.days = {machine()}, {commit()}, {_today()}

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)

    def note_version(self, row: EngineRow, version: str) -> None:
        self.engine_to_version[row.name] = version

    def note_absence(self, absence: Absence) -> None:
        self.absences[absence.model, absence.engine] = absence

    def medians(self, model: str) -> dict[EngineRow, dict[str, float]]:
        """Return each engine's median in each case that it was timed in."""
        values: dict[tuple[EngineRow, str], list[float]] = defaultdict(list)
        for sample in self.samples:
            if sample.model == model:
                values[sample.row, sample.case].append(sample.value)
        found: dict[EngineRow, dict[str, float]] = {}
        for row in ROWS:
            cases = {case: statistics.median(v) for (r, case), v in values.items() if r == row}
            if cases:
                found[row] = cases
        return found

    @property
    def models(self) -> list[str]:
        return sorted({sample.model for sample in self.samples}, reverse=True)

    def write(self, path: Path) -> None:
        """Add this run to a file, one JSON line."""
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._facts()) + "\n")

    def read(self, path: Path) -> None:
        """Add all runs of a file."""
        for line in path.read_text("utf-8").splitlines():
            facts = json.loads(line)
            for model, engine, case, value in facts["samples"]:
                self.add(Sample(model, _NAME_TO_ROW[engine], case, value))
            for each in facts["absences"]:
                self.note_absence(Absence(*each))
            self.engine_to_version |= facts["versions"]
            self.machines |= set(facts["machines"])
            self.commits |= set(facts["commits"])
            self.days |= set(facts["days"])

    def to_json(self) -> str:
        """Return samples and medians for programs."""
        medians = {
            model: {row.name: cases for row, cases in self.medians(model).items()}
            for model in self.models
        }
        return json.dumps({**self._facts(), "medians": medians}, indent=2)

    def _facts(self) -> dict[str, Any]:
        return {
            "machines": sorted(self.machines),
            "commits": sorted(self.commits),
            "days": sorted(self.days),
            "versions": self.engine_to_version,
            "absences": [[a.model, a.engine, a.reason] for a in self.absences.values()],
            "samples": [[s.model, s.row.name, s.case, round(s.value, 4)] for s in self.samples],
        }


def _today() -> str:
    return time.strftime("%Y-%m-%d")
