"""Writes an engine directory: weights are streamed, everything else follows when it is known.

In: packed tensors one by one, then the manifest, the code image, the config and extra files. Out:
a directory that appears under its name only when complete; until then it is a hidden sibling, and
on any failure that is removed. Knows nothing of graphs, kernels or what the bytes mean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.base.staging import StagedDirectory, refuse_foreign_entries
from tidemill.engine.format import (
    CODE_SECTION,
    CONFIG_FILE,
    CONFIG_SECTION,
    ENGINE_FILE,
    FORMAT_VERSION,
    PAGE_BYTES,
    WEIGHT_ALIGNMENT_BYTES,
    WEIGHTS_SECTION,
    Header,
    align_up,
    encode_manifest,
)
from tidemill.engine.manifest import Manifest, Section, WeightRange


class EngineWriter:
    """Builds an engine; use it as a context manager and call `finish` once at its end.

    Replaces an engine that stands in its place. Raises: ConfigError when the directory holds
    something else, BuildError when the disk refuses.
    """

    def __init__(self, output_dir: Path) -> None:
        self._staged = StagedDirectory(output_dir)
        self._weights: dict[str, WeightRange] = {}
        self._hash = hashlib.sha256()
        self._weights_size_bytes = 0
        try:
            self._check_output_dir()
            self._file = (self._staged.path / ENGINE_FILE).open("wb")
            self._file.seek(PAGE_BYTES)
        except BaseException:
            self._staged.discard()
            raise

    def __enter__(self) -> EngineWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After a full disk, closing fails again on what is still buffered; the file goes anyway.
        with contextlib.suppress(OSError):
            self._file.close()
        self._staged.__exit__(exc_type, exc, traceback)

    def add_weight(self, name: str, data: npt.NDArray[Any]) -> int:
        """Append a tensor's bytes to the weights section and return where they start in it.

        Units: the returned offset counts bytes from the section's start, a multiple of 64.
        Raises: BuildError when the disk refuses.
        """
        assert name not in self._weights, f"weight {name} is written twice"
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        offset = align_up(self._weights_size_bytes, WEIGHT_ALIGNMENT_BYTES)
        self._append(bytes(offset - self._weights_size_bytes))
        self._append(raw.data)
        self._weights[name] = WeightRange(name, offset, raw.size)
        return offset

    def finish(
        self,
        manifest: Manifest,
        code_image: bytes,
        config: dict[str, object],
        extra_files: Sequence[Path],
    ) -> Path:
        """Complete the file, copy the extra files beside it and move everything into place.

        Returns the engine directory. Raises: BuildError when the disk refuses or an extra file
        cannot be read, ConfigError when the directory has meanwhile been filled with other files.
        """
        config_bytes = (json.dumps(config, indent=2) + "\n").encode()
        self._complete_file(manifest, code_image, config_bytes)
        staged = self._staged
        (staged.path / CONFIG_FILE).write_bytes(config_bytes)
        for path in extra_files:
            shutil.copyfile(path, staged.path / path.name)
        self._check_output_dir()
        staged.publish()
        return staged.target

    def _append(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)
        self._weights_size_bytes += len(data)

    def _complete_file(self, manifest: Manifest, code_image: bytes, config_bytes: bytes) -> None:
        sections = {
            WEIGHTS_SECTION: Section(PAGE_BYTES, self._weights_size_bytes, self._hash.hexdigest()),
            CODE_SECTION: self._write_section(code_image),
            CONFIG_SECTION: self._write_section(config_bytes),
        }
        encoded = encode_manifest(
            dataclasses.replace(
                manifest,
                format_version=FORMAT_VERSION,
                sections=sections,
                weights=tuple(self._weights.values()),
            )
        )
        place = self._write_section(encoded)
        header = Header(
            FORMAT_VERSION,
            place.offset_bytes + place.size_bytes,
            place.offset_bytes,
            place.size_bytes,
            bytes.fromhex(place.sha256),
        )
        self._file.seek(0)
        self._file.write(header.pack())
        self._file.close()

    def _write_section(self, data: bytes) -> Section:
        offset = align_up(self._file.tell(), PAGE_BYTES)
        self._file.seek(offset)
        self._file.write(data)
        return Section(offset, len(data), hashlib.sha256(data).hexdigest())

    def _check_output_dir(self) -> None:
        target = self._staged.target
        if target.exists():
            entries = list(target.iterdir())
            is_engine = any(entry.suffix == ".engine" for entry in entries)
            foreign = [entry.name for entry in entries if entry.is_dir() or not is_engine]
            refuse_foreign_entries(target, foreign, "an engine")
