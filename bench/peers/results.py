"""What the engines reached: samples, versions and absences, kept as JSON between runs."""

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
        self.machines: set[str] = set()
        self.commits: set[str] = set()
        self.days: set[str] = set()

    def note_run(self) -> None:
        """Note where and when samples are taken that follow."""
        self.machines.add(machine())
        self.commits.add(commit())
        self.days.add(time.strftime("%Y-%m-%d"))

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
        """Write all of this run to a file, in place of what it held."""
        path.write_text(json.dumps(self._facts()) + "\n", "utf-8")

    def read(self, path: Path) -> None:
        """Add a run that was written to a file."""
        facts = json.loads(path.read_text("utf-8"))
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
