"""One block of memory that holds a step's inputs, filled in place from a plan.

In: a `StepPlan`. Out: native memory laid out as the manifest says. Rows of generation cost a few
stores each, through memoryviews: NumPy's own stores take several times as long right after a native
call, which leaves the caches cold. A plan that goes on changes five numbers a row; block tables
are copied only where a row's table has changed since the last step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from tidemill.base import abi
from tidemill.device.cpu import Array, Bytes, allocate
from tidemill.engine.manifest import Manifest
from tidemill.runtime.executor.edits_desk import EditsDesk
from tidemill.runtime.observation import Observation
from tidemill.runtime.request import SamplingParams
from tidemill.runtime.step import EngineLimits, PlanEntry, StepPlan
from tidemill.runtime.token_history import TokenHistory

_TABLES = {"tiles", "tables", "edits"}  # the inputs of several columns, or of one all the same


@dataclass(frozen=True, slots=True)
class WatchedEntry:
    """An entry whose logits are looked at: its index, first packed row and logit row."""

    index: int
    row: int
    logit_row: int
    history: TokenHistory


@dataclass(frozen=True, slots=True)
class _Cells:
    """The inputs of single tokens and logit rows, number by number."""

    header: memoryview
    tokens: memoryview
    positions: memoryview
    slots: memoryview
    tiles: memoryview
    logit_rows: memoryview
    sampled_positions: memoryview

    @staticmethod
    def of(views: Mapping[str, Array]) -> _Cells:
        names = (field.name for field in fields(_Cells))
        return _Cells(**{name: views[name].reshape(-1).data for name in names})


class StepInputs:
    """The inputs of the next step; `failed` has the entries whose own guides failed in it."""

    def __init__(self, manifest: Manifest, limits: EngineLimits) -> None:
        self._block = limits.tokens_per_block
        self._tile_tokens = manifest.kv.tile_tokens
        last = max(manifest.inputs, key=lambda spec: spec.offset_bytes)
        self.memory: Bytes = allocate(last.offset_bytes + last.size_bytes)
        views: dict[str, Array] = {}
        for spec in manifest.inputs:
            raw = self.memory[spec.offset_bytes : spec.offset_bytes + spec.size_bytes]
            view = raw.view(spec.dtype.storage_name)
            views[spec.name] = view.reshape(-1, spec.row_elements) if spec.name in _TABLES else view
        self._tokens, self._positions = views["tokens"], views["positions"]
        self._slots, self._tiles, self._tables = views["slots"], views["tiles"], views["tables"]
        self._cached_blocks, self._logit_rows = views["cached_blocks"], views["logit_rows"]
        self._temperature, self._top_k = views["temperature"], views["top_k"]
        self._top_p, self._seed = views["top_p"], views["seed"].view(np.uint64)
        self._min_p = views["min_p"]
        self._desk = EditsDesk(views["edits"], self._top_p, logits_row_elements(manifest))
        self._at = _Cells.of(views)
        self.watched: list[WatchedEntry] = []
        self.failed: list[tuple[int, Observation]] = []
        self._edited: list[tuple[int, int, TokenHistory]] = []
        self._num_rows = 0
        self._table_of_row: list[tuple[object, int]] = [(None, 0)] * len(self._tables)
        self._sampling_of_row: list[SamplingParams | None] = [None] * len(self._logit_rows)

    def fill(self, plan: StepPlan) -> int:
        """Write a plan's inputs; returns the number of rows that draw a token."""
        if plan.goes_on:
            self._go_on(plan)
        else:
            self._num_rows = self._fill_anew(plan)
        self.failed.clear()
        for index, logit_row, history in self._edited:
            error = self._desk.write(logit_row, history)
            if error:
                self.failed.append((index, Observation(error=error)))
        return self._num_rows

    def _go_on(self, plan: StepPlan) -> None:
        """Move every row on by one token: row, tile and logit row are then the same number."""
        at = self._at
        for row, entry in enumerate(plan.entries):
            at.tokens[row] = entry.tokens[0]
            at.positions[row] = at.tiles[abi.TILE_WORDS * row + 2] = entry.start
            at.sampled_positions[row] = entry.start
            at.slots[row] += 1

    def _fill_anew(self, plan: StepPlan) -> int:
        row = num_tiles = num_logit_rows = 0
        self.watched.clear()
        self._edited.clear()
        for sequence, entry in enumerate(plan.entries):
            self._write_table(sequence, entry)
            count = len(entry.tokens)
            if count == 1:
                self._write_token(row, num_tiles, sequence, entry)
                num_tiles += 1
            else:
                num_tiles += self._write_chunk(row, num_tiles, sequence, entry)
            if entry.history is not None:
                self._watch(sequence, row, num_logit_rows, entry.history)
            row += count
            for num_behind in range(entry.num_draws, 0, -1):
                self._write_sampling(num_logit_rows, row, num_behind, entry)
                if entry.history is not None:
                    self._edited.append((sequence, num_logit_rows, entry.history))
                num_logit_rows += 1
        header = self._at.header
        header[abi.HEADER_TOKENS] = row
        header[abi.HEADER_LOGIT_ROWS] = num_logit_rows
        header[abi.HEADER_TILES] = num_tiles
        header[abi.HEADER_CACHED_BLOCKS] = 0
        if row >= abi.LEAST_TOKENS_TO_FETCH_AHEAD:
            counts = [entry.start and entry.start // self._block + 1 for entry in plan.entries]
            num_listed = _list_blocks(self._tables, np.array(counts), self._cached_blocks)
            header[abi.HEADER_CACHED_BLOCKS] = num_listed
        return num_logit_rows

    def logit_rows(self, num_rows: int) -> Array:
        """The packed rows whose logits this step draws from."""
        return self._logit_rows[:num_rows]

    def set_logit_rows(self, rows: Array) -> None:
        """Point the ops behind the trunk at other packed rows."""
        self._logit_rows[: len(rows)] = rows
        self._at.header[abi.HEADER_LOGIT_ROWS] = len(rows)

    def _watch(self, index: int, row: int, logit_row: int, history: TokenHistory) -> None:
        request = history.request
        if request.wishes is not None or request.processor is not None:
            self.watched.append(WatchedEntry(index, row, logit_row, history))

    def _write_table(self, sequence: int, entry: PlanEntry) -> None:
        """Block ids move up by one: NO_BLOCK becomes 0, the null block of the memory."""
        table = entry.block_table
        known = (table, len(table))
        owner, length = self._table_of_row[sequence]
        if owner is table and length == len(table):
            return
        self._tables[sequence, : len(table)] = table
        self._tables[sequence, : len(table)] += 1
        self._tables[sequence, len(table) :] = 0
        self._table_of_row[sequence] = known

    def _write_token(self, row: int, tile: int, sequence: int, entry: PlanEntry) -> None:
        at, start = self._at, entry.start
        at.tokens[row] = entry.tokens[0]
        at.positions[row] = start
        block = entry.block_table[start // self._block] + 1
        at.slots[row] = block * self._block + start % self._block
        for word, value in enumerate((row, 1, start, sequence), tile * abi.TILE_WORDS):
            at.tiles[word] = value

    def _write_chunk(self, row: int, tile: int, sequence: int, entry: PlanEntry) -> int:
        """Write a chunk of a prompt; returns the number of attention tiles it takes."""
        count, start, size = len(entry.tokens), entry.start, self._tile_tokens
        rows = slice(row, row + count)
        positions = np.arange(start, start + count)
        self._tokens[rows] = entry.tokens
        self._positions[rows] = positions
        blocks = self._tables[sequence, positions // self._block]
        self._slots[rows] = blocks * self._block + positions % self._block
        firsts = np.arange(0, count, size)
        tiles = self._tiles[tile : tile + len(firsts)]
        tiles[:, 0] = row + firsts
        tiles[:, 1] = np.minimum(size, count - firsts)
        tiles[:, 2] = start + firsts
        tiles[:, 3] = sequence
        return len(firsts)

    def _write_sampling(self, logit_row: int, end: int, num_behind: int, entry: PlanEntry) -> None:
        """Draw after the token that stands `num_behind` rows before the entry's end."""
        self._at.logit_rows[logit_row] = end - num_behind
        self._at.sampled_positions[logit_row] = entry.start + len(entry.tokens) - num_behind
        sampling = entry.sampling
        # Requests may share their sampling values and differ in what edits their logits.
        if self._desk.rows and entry.history is None and logit_row in self._desk.rows:
            self._desk.clear(logit_row)
            self._sampling_of_row[logit_row] = None
        if self._sampling_of_row[logit_row] is sampling:
            return
        self._sampling_of_row[logit_row] = sampling
        self._temperature[logit_row] = 0.0 if sampling.is_greedy else sampling.temperature
        self._top_k[logit_row] = sampling.top_k
        self._top_p[logit_row] = sampling.top_p
        self._min_p[logit_row] = sampling.min_p
        self._seed[logit_row] = sampling.seed


def _list_blocks(tables: Array, counts: Array, to: Array) -> int:
    """List the first `counts` blocks of each sequence, the last sequence first, as attention reads.

    Of a sequence that has begun also the one that its next token goes to is wanted: writing to it
    would wait for its lines. Returns how many there were room for.
    """
    most = counts.max()
    is_listed = np.arange(most) < counts[::-1, None]
    blocks = tables[: len(counts), :most][::-1][is_listed][: len(to)]
    to[: len(blocks)] = blocks
    return len(blocks)


def logits_row_elements(manifest: Manifest) -> int:
    """Width of a row of logits, padding included: what the op before the last writes."""
    name = manifest.plan[-2].output
    return next(spec.row_elements for spec in manifest.buffers if spec.name == name)
