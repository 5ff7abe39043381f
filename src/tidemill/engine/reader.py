"""Opens an engine file: checks it, parses the manifest and maps the weights without reading them.

In: an engine directory or file; out: an `EngineFile`. The cheap check covers everything but the
weights' bytes, the full one those, too. Weights are mapped shared, so processes on one machine
hold them once. Knows nothing of executing code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tidemill.base.errors import EngineFormatError
from tidemill.base.json_text import parse_json
from tidemill.engine.format import (
    CODE_SECTION,
    CONFIG_FILE,
    CONFIG_SECTION,
    ENGINE_FILE,
    PAGE_BYTES,
    SECTION_NAMES,
    WEIGHTS_SECTION,
    Header,
    align_up,
    decode_manifest,
    rebuild_command,
    unpack_header,
)
from tidemill.engine.manifest import Manifest


@dataclass
class EngineFile:
    """An open engine: its manifest and config as data, its code and weights as bytes.

    `identity` is the manifest's hash, and so the whole file's. `weights` is read-only and
    page-aligned. It stays valid after `close` for whoever still holds it: the mapping ends with its
    last reader.
    """

    path: Path
    manifest: Manifest
    config: dict[str, Any]
    identity: str
    _mapping: mmap.mmap | None

    @classmethod
    def open(cls, engine_dir_or_file: Path | str, full_check: bool = False) -> EngineFile:
        """Open an engine from its directory, or from the file itself.

        `full_check` also hashes the weights. Raises: EngineFormatError.
        """
        path = _find_file(Path(engine_dir_or_file))
        rebuild = rebuild_command("", str(path.parent))
        header, mapping = _map_file(path, rebuild)
        manifest = _read_manifest(path, header, mapping, rebuild)
        rebuild = rebuild_command(manifest.source_checkpoint, str(path.parent))
        names = SECTION_NAMES if full_check else (CODE_SECTION, CONFIG_SECTION)
        _check_sections(path, manifest, mapping, names, rebuild)
        config = json.loads(_section_bytes(mapping, manifest, CONFIG_SECTION))
        _check_config_copy(path.parent / CONFIG_FILE, config, rebuild)
        return cls(path, manifest, config, header.manifest_sha256.hex(), mapping)

    def code_image(self) -> bytes:
        """Return a copy of the code section."""
        return _section_bytes(self._open_mapping(), self.manifest, CODE_SECTION)

    @property
    def weights(self) -> npt.NDArray[np.uint8]:
        """The weights section, mapped."""
        section = self.manifest.sections[WEIGHTS_SECTION]
        whole = np.frombuffer(self._open_mapping(), np.uint8)
        return whole[section.offset_bytes : section.offset_bytes + section.size_bytes]

    def forget_weights(self, first: int, size: int) -> None:
        """Count the whole pages within a range as nobody's; they come back when they are read.

        Units: bytes from the section's start. Sections lie on the file's pages, and the system's
        may be larger: 64 KiB on some aarch64 kernels, which refuse to forget from within a page.
        """
        section = self.manifest.sections[WEIGHTS_SECTION].offset_bytes
        start = align_up(section + first, mmap.PAGESIZE)
        end = (section + first + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end:
            with contextlib.suppress(OSError):  # pages that are locked in memory stay
                self._open_mapping().madvise(mmap.MADV_DONTNEED, start, end - start)

    def close(self) -> None:
        """Let go of the mapping; closing twice does no harm."""
        self._mapping = None

    def __enter__(self) -> EngineFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open_mapping(self) -> mmap.mmap:
        assert self._mapping is not None, f"{self.path} is closed"
        return self._mapping


def _find_file(path: Path) -> Path:
    file = path / ENGINE_FILE if path.is_dir() else path
    if file.is_file():
        return file
    if path.is_dir():
        others = sorted(entry.name for entry in path.glob("*.engine"))
        got = f"only {', '.join(others)}" if others else "a directory without any .engine file"
    else:
        got = "no such file or directory"
    raise EngineFormatError(
        "there is no engine",
        where=str(path),
        expected=f"an engine directory with {ENGINE_FILE}",
        got=got,
        hint=rebuild_command("", str(path)),
    )


def _map_file(path: Path, rebuild: str) -> tuple[Header, mmap.mmap]:
    with path.open("rb") as file:
        header = unpack_header(file.read(PAGE_BYTES), str(path), rebuild)
        file_bytes = file.seek(0, 2)
        if file_bytes != header.file_bytes:
            fault = "truncated" if file_bytes < header.file_bytes else "longer than it should be"
            raise EngineFormatError(
                f"the engine file is {fault}",
                where=str(path),
                expected=f"{header.file_bytes} bytes",
                got=f"{file_bytes} bytes",
                hint=f"copy the file again, or rebuild: {rebuild}",
            )
        return header, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)


def _read_manifest(path: Path, header: Header, mapping: mmap.mmap, rebuild: str) -> Manifest:
    start = header.manifest_offset_bytes
    data = mapping[start : start + header.manifest_size_bytes]
    fault = ""
    if hashlib.sha256(data).digest() != header.manifest_sha256:
        fault = "bytes with another hash"
    else:
        try:
            return decode_manifest(data)
        except msgspec.DecodeError as error:
            fault = str(error)
    raise EngineFormatError(
        "the engine's manifest is corrupted",
        where=f"{path}, bytes {start} to {start + header.manifest_size_bytes}",
        expected="a manifest that matches its hash and this version's schema",
        got=fault,
        hint=f"copy the file again, or rebuild: {rebuild}",
    )


def _check_sections(
    path: Path, manifest: Manifest, mapping: mmap.mmap, hashed: Collection[str], rebuild: str
) -> None:
    """Check every section's place and the hashes of some; all faults are told at once."""
    faults = []
    for name in SECTION_NAMES:
        section = manifest.sections.get(name)
        if section is None:
            faults.append(f"{name} is missing")
            continue
        end = section.offset_bytes + section.size_bytes
        if section.offset_bytes % PAGE_BYTES or not PAGE_BYTES <= section.offset_bytes <= end:
            faults.append(f"{name} is misplaced at {section.offset_bytes}")
        elif end > len(mapping):
            faults.append(f"{name} ends at {end}, past the file's {len(mapping)} bytes")
        elif name in hashed:
            # A view, not a slice of the mapping: slicing would copy hundreds of megabytes.
            with memoryview(mapping) as view, view[section.offset_bytes : end] as data:
                if hashlib.sha256(data).hexdigest() != section.sha256:
                    faults.append(f"{name} has another hash")
    if faults:
        raise EngineFormatError(
            "the engine file is corrupted",
            where=str(path),
            expected="sections at their places, with the hashes that were written",
            got="; ".join(faults),
            hint=f"copy the file again, or rebuild: {rebuild}",
        )


def _check_config_copy(path: Path, config: dict[str, Any], rebuild: str) -> None:
    """Refuse an edited config.json: the compiled limits would not follow it."""
    if not path.is_file():
        return
    try:
        copy = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        copy, got = None, f"invalid JSON: {error}"
    else:
        got = "other values: " + ", ".join(_differing_keys(config, copy))
    if copy != config:
        raise EngineFormatError(
            "config.json differs from the config the engine was built with",
            where=str(path),
            expected="the file as the build wrote it (limits are compiled in)",
            got=got,
            hint=f"restore the file or delete it (the engine holds a copy), or rebuild: {rebuild}",
        )


def _differing_keys(built: object, edited: object, prefix: str = "") -> list[str]:
    if not (isinstance(built, dict) and isinstance(edited, dict)):
        return [] if built == edited else [prefix or "the whole file"]
    keys = []
    for key in sorted(built.keys() | edited.keys()):
        name = f"{prefix}.{key}" if prefix else str(key)
        keys += _differing_keys(built.get(key), edited.get(key), name)
    return keys


def _section_bytes(mapping: mmap.mmap, manifest: Manifest, name: str) -> bytes:
    section = manifest.sections[name]
    return mapping[section.offset_bytes : section.offset_bytes + section.size_bytes]
