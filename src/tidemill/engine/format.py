"""The bytes of an engine file that never move: the header page and the manifest's JSON.

In: a header or a manifest as dataclasses; out: bytes, and back, checked. A file is the header
page, sections that each start on a page, and the manifest at the end (docs/ENGINE_FORMAT.md).
Knows nothing of directories, mapping or what the sections mean.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from tidemill.base.errors import EngineFormatError
from tidemill.engine.manifest import Manifest

MAGIC = b"TIDEMILL"
# Raised by whoever changes the bytes, the manifest's meaning or the ABI of the native calls.
FORMAT_VERSION = 8
PAGE_BYTES = 4096
WEIGHT_ALIGNMENT_BYTES = 64

WEIGHTS_SECTION = "weights"
CODE_SECTION = "code"
CONFIG_SECTION = "config"
SECTION_NAMES = (WEIGHTS_SECTION, CODE_SECTION, CONFIG_SECTION)

CONFIG_FILE = "config.json"
# Named as TensorRT-LLM names the file of its first rank: ours has one (docs/decisions/008).
ENGINE_FILE = "rank0.engine"


def align_up(offset_bytes: int, alignment_bytes: int) -> int:
    """Return the first multiple of the alignment at or after the offset."""
    return -(-offset_bytes // alignment_bytes) * alignment_bytes


def rebuild_command(checkpoint_dir: str, output_dir: str) -> str:
    """Return the command line that builds an engine again."""
    return (
        f"tidemill build --checkpoint_dir {checkpoint_dir or 'CHECKPOINT'} "
        f"--output_dir {output_dir}"
    )


@dataclass(frozen=True)
class Header:
    """The first bytes of the file; the rest of its page is zero.

    The magic and the version keep their place in every format version, so that any release can
    name what it was given. The last 32 bytes are the SHA-256 of those before them.
    """

    format_version: int
    file_bytes: int
    manifest_offset_bytes: int
    manifest_size_bytes: int
    manifest_sha256: bytes

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<8sII3Q32s")
    SIZE_BYTES: ClassVar[int] = LAYOUT.size + 32

    def pack(self) -> bytes:
        """Return the header page."""
        fields = self.LAYOUT.pack(
            MAGIC,
            self.format_version,
            PAGE_BYTES,
            self.file_bytes,
            self.manifest_offset_bytes,
            self.manifest_size_bytes,
            self.manifest_sha256,
        )
        return (fields + hashlib.sha256(fields).digest()).ljust(PAGE_BYTES, b"\0")


def unpack_header(page: bytes, where: str, rebuild: str) -> Header:
    """Read the header page of a file, checking magic, version and its own hash in this order.

    Raises: EngineFormatError that names `where`, and the `rebuild` command as what to try.
    """
    if not page or page[: len(MAGIC)] != MAGIC[: len(page)]:
        raise EngineFormatError(
            "the file is not a Tidemill engine",
            where=where,
            expected=f"a file that starts with {MAGIC.decode()}",
            got=f"{page[: len(MAGIC)]!r}" if page else "an empty file",
            hint=f"engines of other compilers are not read; from their checkpoint: {rebuild}",
        )
    if len(page) < PAGE_BYTES:
        raise EngineFormatError(
            "the engine file is truncated within its header",
            where=where,
            expected=f"at least {PAGE_BYTES} bytes",
            got=f"{len(page)} bytes",
            hint=f"copy the file again, or rebuild: {rebuild}",
        )
    _, version, _, file_bytes, offset, size, sha256 = Header.LAYOUT.unpack_from(page)
    if version != FORMAT_VERSION:
        raise EngineFormatError(
            "the engine was built by another version of Tidemill",
            where=where,
            expected=f"engine format version {FORMAT_VERSION}",
            got=f"engine format version {version}",
            hint=f"rebuild it with this version: {rebuild}",
        )
    header = Header(version, file_bytes, offset, size, sha256)
    if header.pack() != page:
        raise EngineFormatError(
            "the engine file's header is corrupted",
            where=where,
            expected="a header that matches its own hash",
            got="other bytes",
            hint=f"copy the file again, or rebuild: {rebuild}",
        )
    return header


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as JSON."""
    return msgspec.json.encode(manifest)


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest from JSON; every field is checked against the schema.

    Raises: msgspec.DecodeError (or its subclass ValidationError, which names the field's path).
    """
    return msgspec.json.decode(data, type=Manifest)
