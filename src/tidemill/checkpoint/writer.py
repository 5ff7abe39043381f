"""Writes a checkpoint directory: rank files filled tensor by tensor, config, files beside them.

In: a config, the tensors' names and shapes, and a function that loads one tensor. Out: a complete
directory, or none: everything goes to a temporary sibling that is renamed into place at the end.
Headers are computed first, so each tensor is split, written and forgotten; memory holds about one
tensor per worker. Does not know where tensors come from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np

from tidemill.base.dtypes import DTYPE_TO_SAFETENSORS, DType
from tidemill.base.progress import Progress
from tidemill.base.staging import StagedDirectory, refuse_foreign_entries
from tidemill.base.version import __version__
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.file_bytes import Array
from tidemill.checkpoint.sharding import (
    EMBEDDING,
    LM_HEAD,
    NAME_TO_ROW,
    TensorRow,
    local_name,
    needs_lm_head_copy,
    shard,
    shard_shape,
    stage_of,
)

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "generation_config.json", "chat_template.jinja",
)  # fmt: skip
_Types = Mapping[str, tuple[DType, tuple[int, ...]]]


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor of the whole model; `load` gives it in its stored type in turn."""

    name: str
    row: TensorRow
    load: Callable[[], Array]


@dataclass(frozen=True)
class WrittenCheckpoint:
    """What was written: count of whole tensors, bytes of all rank files, hash of the content."""

    num_tensors: int
    total_bytes: int
    content_hash: str


class CheckpointWriter:
    """Writes one checkpoint; use as a context manager, `commit` makes it visible."""

    def __init__(self, output_dir: Path, config: CheckpointConfig) -> None:
        self.config = config
        refuse_foreign_entries(output_dir, _foreign_entries(output_dir), "a checkpoint")
        self._staged = StagedDirectory(output_dir)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._staged.__exit__(exc_type, exc, traceback)

    def write_files(self, name_to_content: Mapping[str, bytes]) -> None:
        """Write small files beside the weights."""
        for name, content in name_to_content.items():
            (self._staged.path / name).write_bytes(content)

    def write_tensors(
        self, tensors: Sequence[TensorToWrite], workers: int, progress: Progress | None
    ) -> WrittenCheckpoint:
        """Load, split and write every tensor, `workers` at a time."""
        files = [
            _RankFile(
                self._staged.path / f"rank{rank}.safetensors",
                self._rank_types(tensors, rank),
            )
            for rank in range(self.config.mapping.world_size)
        ]
        total_bytes = sum(file.data_bytes for file in files)
        meter = _Meter(total_bytes, progress)
        try:
            with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
                futures = [pool.submit(self._write_one, t, files, meter) for t in tensors]
                try:
                    digests = [future.result() for future in futures]
                finally:
                    for future in futures:
                        future.cancel()
        finally:
            for file in files:
                file.close()
        content = hashlib.sha256("\n".join(sorted(digests)).encode())
        return WrittenCheckpoint(len(tensors), total_bytes, content.hexdigest())

    def commit(self, source: str, content_hash: str) -> None:
        """Write config.json and rename the directory into place, replacing a checkpoint there."""
        note = {
            "source": source,
            "converter_version": __version__,
            "content_hash": f"sha256:{content_hash}" if content_hash else None,
        }
        config = replace(self.config, tidemill={**(self.config.tidemill or {}), **note})
        text = json.dumps(config.to_json(), indent=2) + "\n"
        self.write_files({"config.json": text.encode()})
        self._staged.publish()

    def _rank_types(self, tensors: Sequence[TensorToWrite], rank: int) -> _Types:
        mapping = replace(self.config.mapping, rank=rank)
        name_to_row = {
            local_name(tensor.name, self.config): tensor.row
            for tensor in tensors
            if stage_of(tensor.name, self.config) == mapping.pp_rank
        }
        if mapping.is_last_stage and needs_lm_head_copy(self.config):
            name_to_row[LM_HEAD] = NAME_TO_ROW[LM_HEAD]
        return {
            name: (row.stored_dtype(self.config), shard_shape(row, self.config))
            for name, row in name_to_row.items()
        }

    def _write_one(self, tensor: TensorToWrite, files: list[_RankFile], meter: _Meter) -> str:
        values = tensor.load()
        places = [(tensor.name, tensor.row)]
        if tensor.name == EMBEDDING and needs_lm_head_copy(self.config):
            places.append((LM_HEAD, NAME_TO_ROW[LM_HEAD]))
        tp_size = self.config.mapping.tp_size
        for name, row in places:
            first_rank = stage_of(name, self.config) * tp_size
            for tp_rank in range(tp_size):
                part = shard(row, self.config, values, tp_rank)
                files[first_rank + tp_rank].write(local_name(name, self.config), part)
                meter.add(name, part.nbytes)
        # The hash is over whole tensors, so that it does not depend on tp and pp.
        digest = hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        dtype = "int8" if tensor.row.is_levels else self.config.dtype
        return f"{tensor.name} {dtype} {values.shape} {digest.hexdigest()}"


class _Meter:
    """Adds up written bytes over threads and reports them."""

    def __init__(self, total_bytes: int, progress: Progress | None) -> None:
        self._total_bytes = total_bytes
        self._progress = progress
        self._done_bytes = 0
        self._lock = threading.Lock()

    def add(self, name: str, num_bytes: int) -> None:
        with self._lock:
            self._done_bytes += num_bytes
            if self._progress is not None:
                self._progress(name, self._done_bytes, self._total_bytes)


class _RankFile:
    """A safetensors file of known tensors, filled in any order and from several threads."""

    def __init__(self, path: Path, types: _Types) -> None:
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in types.items():
            begin, end = end, end + prod(shape) * dtype.itemsize_bytes
            self._offsets[name] = begin
            header[name] = {
                "dtype": DTYPE_TO_SAFETENSORS[dtype],
                "shape": shape,
                "data_offsets": [begin, end],
            }
        self.data_bytes = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._data_start = 8 + len(text)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.pwrite(self._descriptor, len(text).to_bytes(8, "little") + text, 0)

    def write(self, name: str, values: Array) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        offset = self._data_start + self._offsets[name]
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], offset + done)

    def close(self) -> None:
        os.close(self._descriptor)


def _foreign_entries(output_dir: Path) -> list[str]:
    """Names in the directory that no checkpoint has."""
    if not output_dir.is_dir():
        return []
    return [
        path.name
        for path in output_dir.iterdir()
        if path.name not in (*TOKENIZER_FILES, "config.json")
        and not re.fullmatch(r"rank\d+\.safetensors", path.name)
    ]
