"""The container of a GGUF file: its metadata, and where each tensor lies.

In: a path. Out: a dict of metadata (strings, numbers, lists) and a table of tensors whose byte
ranges were checked against the file's size. Written here rather than taken from the `gguf`
package because that reader takes seconds for a vocabulary and does not notice a truncated file.
Knows nothing of the tensors' encodings beyond their sizes.
Source: ggml docs/gguf.md, versions 2 and 3, little endian.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from tidemill.base.errors import CheckpointError, UnsupportedError
from tidemill.checkpoint.file_bytes import FileBytes

MetadataValue = int | float | bool | str | list[Any]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# Value type number -> struct format of the scalar.
_SCALAR_FORMATS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies and how it is encoded; `shape` is outermost dimension first."""

    shape: tuple[int, ...]
    encoding: GGMLQuantizationType
    offset_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: blocks run along the last dimension only."""
        block_elements, block_bytes = GGML_QUANT_SIZES[self.encoding]
        return self.shape[-1] // block_elements * block_bytes

    @property
    def size_bytes(self) -> int:
        return prod(self.shape[:-1]) * self.row_bytes


class GgufFile:
    """The header of a GGUF file, validated against the file's size."""

    def __init__(self, path: Path) -> None:
        self.bytes = FileBytes(path)
        if self.bytes.size_bytes < 24:
            raise self.bytes.truncated(24)
        with (
            open(path, "rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            cursor = _Cursor(mapped, self.bytes)
            self.version, num_tensors, num_pairs = _read_preamble(cursor)
            self.metadata = _read_metadata(cursor, num_pairs)
            tensors = dict(_read_tensor(cursor) for _ in range(num_tensors))
            header_end = cursor.offset
        self.tensors = self._place(tensors, header_end)
        ends = [tensor.offset_bytes + tensor.size_bytes for tensor in self.tensors.values()]
        if max(ends, default=0) > self.bytes.size_bytes:
            raise self.bytes.truncated(max(ends))

    def _place(self, tensors: dict[str, GgufTensor], header_end: int) -> dict[str, GgufTensor]:
        """Turn offsets into the data area into offsets into the file."""
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise _malformed(self.bytes, f"general.alignment {alignment!r}")
        data_start = -(-header_end // alignment) * alignment
        return {
            name: GgufTensor(t.shape, t.encoding, data_start + t.offset_bytes)
            for name, t in tensors.items()
        }


class _Cursor:
    """Reads little-endian values one after the other, never past the end."""

    def __init__(self, data: mmap.mmap, file: FileBytes) -> None:
        self.data = data
        self.file = file
        self.offset = 0

    def take(self, num_bytes: int) -> bytes:
        end = self.offset + num_bytes
        if end > len(self.data):
            raise self.file.truncated(end)
        piece = self.data[self.offset : end]
        self.offset = end
        return piece

    def scalars(self, letters: str) -> tuple[Any, ...]:
        layout = "<" + letters
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def string(self) -> str:
        (length,) = self.scalars("Q")
        raw = self.take(length)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _malformed(self.file, f"a string at byte {self.offset}: {error}") from error

    def value(self, kind: int) -> MetadataValue:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item_kind, count = self.scalars("IQ")
            return self.array(item_kind, count)
        if kind not in _SCALAR_FORMATS:
            raise _malformed(self.file, f"value type {kind} at byte {self.offset}")
        return self.scalars(_SCALAR_FORMATS[kind])[0]  # type: ignore[no-any-return]

    def array(self, item_kind: int, count: int) -> list[Any]:
        if item_kind in _SCALAR_FORMATS:
            letter = _SCALAR_FORMATS[item_kind]
            raw = self.take(count * struct.calcsize("<" + letter))
            return list(struct.unpack(f"<{count}{letter}", raw))
        # Arrays in arrays are allowed by the format and written by nobody.
        if item_kind != _STRING:
            raise _malformed(self.file, f"an array of type {item_kind} at byte {self.offset}")
        return [self.string() for _ in range(count)]


def _read_preamble(cursor: _Cursor) -> tuple[int, int, int]:
    magic = cursor.take(4)
    if magic != _MAGIC:
        raise CheckpointError(
            "not a GGUF file",
            where=str(cursor.file.path),
            expected="the first four bytes GGUF",
            got=repr(magic),
            hint="fetch the file again; a git-lfs pointer is a small text file, not the weights",
        )
    version, num_tensors, num_pairs = cursor.scalars("IQQ")
    if version not in _VERSIONS:
        raise UnsupportedError(
            "GGUF version is not supported",
            where=str(cursor.file.path),
            expected="version 2 or 3, little endian",
            got=f"version {version}",
            hint="convert the model to GGUF again with a current llama.cpp",
        )
    return version, num_tensors, num_pairs


def _read_metadata(cursor: _Cursor, num_pairs: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for _ in range(num_pairs):
        key = cursor.string()
        (kind,) = cursor.scalars("I")
        metadata[key] = cursor.value(kind)
    return metadata


def _read_tensor(cursor: _Cursor) -> tuple[str, GgufTensor]:
    name = cursor.string()
    (num_dims,) = cursor.scalars("I")
    if not 1 <= num_dims <= 4:
        raise _malformed(cursor.file, f"{name} with {num_dims} dimensions")
    dims = cursor.scalars("Q" * num_dims)
    kind, offset_bytes = cursor.scalars("IQ")
    if kind not in GGML_QUANT_SIZES:
        raise UnsupportedError(
            "tensor encoding is not known",
            where=f"{name} in {cursor.file.path}",
            expected="an encoding that the installed gguf package knows",
            got=f"type {kind}",
            hint="update the gguf package, or use a file in Q8_0, Q4_K, F16 or BF16",
        )
    encoding = GGMLQuantizationType(kind)
    if dims[0] % GGML_QUANT_SIZES[encoding][0]:
        raise _malformed(cursor.file, f"{name}: rows of {dims[0]} in {encoding.name}")
    return name, GgufTensor(tuple(reversed(dims)), encoding, offset_bytes)


def _malformed(file: FileBytes, got: str) -> CheckpointError:
    return CheckpointError(
        "not a valid GGUF file",
        where=str(file.path),
        expected="a header as in the GGUF specification",
        got=got,
        hint="fetch the file again",
    )
