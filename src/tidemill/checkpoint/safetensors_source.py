"""Lazy tensors of safetensors files: one file, or several listed by an index.

In: paths. Out: names, shapes, types, and arrays read on demand. Headers are checked against the
files' sizes before the first tensor is read, and every fault found is listed at once. Does not
know what the tensors are for.
Source: the safetensors format: 8 bytes header length, JSON header, one packed data area.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from tidemill.base.dtypes import SAFETENSORS_TO_DTYPE, DType
from tidemill.base.errors import BuildError, CheckpointError, UnsupportedError
from tidemill.base.json_text import parse_json
from tidemill.checkpoint.file_bytes import Array, FileBytes
from tidemill.checkpoint.json_file import read_json_object

_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class _Entry:
    file: FileBytes
    dtype_name: str
    shape: tuple[int, ...]
    offset_bytes: int


class SafetensorsSource:
    """The tensors of one or several safetensors files."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = list(paths)
        self._entries: dict[str, _Entry] = {}
        for path in self.paths:
            file = FileBytes(path)
            for name, entry in _read_header(file).items():
                if name in self._entries:
                    other = self._entries[name].file.path.name
                    raise CheckpointError(
                        "tensor is in two files",
                        where=f"{name} in {path}",
                        expected="each tensor once",
                        got=f"also in {other}",
                        hint="remove the file that is not part of this model",
                    )
                self._entries[name] = entry

    @staticmethod
    def open_directory(directory: Path) -> SafetensorsSource:
        """Open a Hugging Face directory: by its index if it has one, else its only file(s).

        Raises: CheckpointError listing every file that the index names and that is missing.
        """
        index_path = directory / "model.safetensors.index.json"
        if index_path.is_file():
            return _open_index(index_path)
        single = directory / "model.safetensors"
        if single.is_file():
            return SafetensorsSource([single])
        paths = sorted(directory.glob("*.safetensors"))
        if not paths:
            raise _no_safetensors(directory)
        return SafetensorsSource(paths)

    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def type_name(self, name: str) -> str:
        """Return a tensor's element type as the file spells it."""
        return self._entries[name].dtype_name

    def dtype(self, name: str) -> DType:
        """Return a tensor's element type.

        Raises: UnsupportedError for types that this version has no name for (F8_E5M2, ...).
        """
        entry = self._entries[name]
        if entry.dtype_name not in SAFETENSORS_TO_DTYPE:
            raise UnsupportedError(
                "element type is not supported",
                where=f"{name} in {entry.file.path}",
                expected=", ".join(SAFETENSORS_TO_DTYPE),
                got=entry.dtype_name,
                hint="start from the unquantised model",
            )
        return SAFETENSORS_TO_DTYPE[entry.dtype_name]

    def read(self, name: str) -> Array:
        """Read a whole tensor in storage type."""
        entry = self._entries[name]
        return entry.file.read(entry.offset_bytes, entry.shape, self.dtype(name).storage_name)

    def has_cheap_rows(self, name: str) -> bool:
        return name in self._entries

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Read rows [start, stop) of dimension 0."""
        entry = self._entries[name]
        dtype = self.dtype(name)
        row_bytes = prod(entry.shape[1:]) * dtype.itemsize_bytes
        shape = (stop - start, *entry.shape[1:])
        return entry.file.read(entry.offset_bytes + start * row_bytes, shape, dtype.storage_name)


def _open_index(index_path: Path) -> SafetensorsSource:
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(
            "safetensors index is malformed",
            where=str(index_path),
            expected='an object "weight_map" of tensor name to file name',
            got=type(weight_map).__name__,
            hint="download the index again, or delete it if one file holds all weights",
        )
    file_names = sorted(set(weight_map.values()))
    elsewhere = [name for name in file_names if Path(name).name != name]
    if elsewhere:
        raise CheckpointError(
            "safetensors index names files of other directories",
            where=str(index_path),
            expected="names of files beside the index",
            got=", ".join(elsewhere[:5]),
            hint="fetch the index again; put all weight files beside it",
        )
    missing = [name for name in file_names if not (index_path.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(file_names)} weight files are missing",
            where=str(index_path),
            expected="every file that the index names",
            got="no " + ", ".join(missing),
            hint="finish the download of this model",
        )
    source = SafetensorsSource(index_path.parent / name for name in file_names)
    absent = sorted(set(weight_map) - set(source.names()))
    if absent:
        raise CheckpointError(
            f"{len(absent)} tensors of the index are in no file",
            where=str(index_path),
            expected="every tensor that the index names",
            got="no " + ", ".join(absent),
            hint="index and files come from different versions of the model; fetch both again",
        )
    return source


def _no_safetensors(directory: Path) -> BuildError:
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    if pickled:
        return UnsupportedError(
            "only pickled PyTorch weights found",
            where=str(directory),
            expected="*.safetensors",
            got=", ".join(pickled),
            hint="load the model once with transformers and save_pretrained() it: that writes "
            "safetensors",
        )
    return CheckpointError(
        "no weight files found",
        where=str(directory),
        expected="*.safetensors",
        got="none",
        hint="give the directory that holds the weights; a .gguf file is named itself",
    )


def _read_header(file: FileBytes) -> dict[str, _Entry]:
    if file.size_bytes < 8:
        raise file.truncated(8)
    num_bytes = int.from_bytes(file.read_bytes(0, 8), "little")
    if num_bytes > _MAX_HEADER_BYTES:
        raise _malformed(file, f"header length {num_bytes}")
    data_start = 8 + num_bytes
    if data_start > file.size_bytes:
        raise file.truncated(data_start)
    faults: list[str] = []
    entries: dict[str, _Entry] = {}
    data_end = 0
    try:
        header = parse_json(file.read_bytes(8, num_bytes))
        header.pop("__metadata__", None)
        for name, row in header.items():
            begin, end = map(int, row["data_offsets"])
            entry = _Entry(file, str(row["dtype"]), tuple(map(int, row["shape"])), begin)
            faults += _range_faults(name, entry, end)
            data_end = max(data_end, end)
            entries[name] = replace(entry, offset_bytes=data_start + begin)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _malformed(file, f"{type(error).__name__}: {error}") from error
    if faults:
        raise _malformed(file, "; ".join(faults))
    if data_start + data_end > file.size_bytes:
        raise file.truncated(data_start + data_end)
    return entries


def _range_faults(name: str, entry: _Entry, end: int) -> list[str]:
    begin = entry.offset_bytes
    if begin < 0 or end < begin or min(entry.shape, default=0) < 0:
        return [f"{name}: range [{begin}, {end}), shape {entry.shape}"]
    dtype = SAFETENSORS_TO_DTYPE.get(entry.dtype_name)
    if dtype is not None and prod(entry.shape) * dtype.itemsize_bytes != end - begin:
        return [f"{name}: {end - begin} bytes for {entry.dtype_name} {entry.shape}"]
    return []


def _malformed(file: FileBytes, got: str) -> CheckpointError:
    return CheckpointError(
        "not a valid safetensors file",
        where=str(file.path),
        expected="a header whose shapes and byte ranges agree",
        got=got,
        hint="fetch the file again; a git-lfs pointer is a small text file, not the weights",
    )
