"""One test for each way an engine can be wrong, named for the mistake."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unit.engine.tiny_engine import CODE_IMAGE, CONFIG, make_manifest, write_engine
from tidemill.base import target
from tidemill.base.errors import BuildError, ConfigError, EngineFormatError, EngineTargetError
from tidemill.engine import native_code
from tidemill.engine.format import FORMAT_VERSION, PAGE_BYTES, Header
from tidemill.engine.native_code import find_native_code
from tidemill.engine.reader import EngineFile
from tidemill.engine.writer import EngineWriter

REBUILD = "tidemill build --checkpoint_dir"


@pytest.fixture
def engine_dir(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "engine")


def edit(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flip(path: Path, offset_bytes: int) -> None:
    def change(data: bytearray) -> None:
        data[offset_bytes] ^= 1

    edit(path, change)


def message_of(path: Path, full_check: bool = False) -> str:
    with pytest.raises(EngineFormatError) as caught:
        EngineFile.open(path, full_check=full_check)
    assert caught.value.where
    assert caught.value.got
    assert REBUILD in caught.value.hint
    return str(caught.value)


def test_missing_directory(tmp_path: Path) -> None:
    assert "no such file or directory" in message_of(tmp_path / "nowhere")


def test_directory_without_engine(tmp_path: Path) -> None:
    assert "a directory without any .engine file" in message_of(tmp_path)


def test_directory_with_an_engine_of_another_name(engine_dir: Path) -> None:
    (engine_dir / "rank0.engine").rename(engine_dir / "rank1.engine")
    assert "only rank1.engine" in message_of(engine_dir)


@pytest.mark.parametrize("content", [b"", b"GGUF\x03\0\0\0", b"TIDE\0\0\0\0", b"{}" * 5000])
def test_file_that_is_no_engine(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rank0.engine"
    path.write_bytes(content)
    assert "not a Tidemill engine" in message_of(path)


@pytest.mark.parametrize("kept_bytes", [3, 8, 100, PAGE_BYTES - 1])
def test_file_truncated_within_its_header(engine_dir: Path, kept_bytes: int) -> None:
    path = engine_dir / "rank0.engine"
    os.truncate(path, kept_bytes)
    text = message_of(path)
    assert "truncated within its header" in text
    assert f"{kept_bytes} bytes" in text


@pytest.mark.parametrize("lost_bytes", [1, 5000])
def test_file_truncated(engine_dir: Path, lost_bytes: int) -> None:
    path = engine_dir / "rank0.engine"
    size = path.stat().st_size
    os.truncate(path, size - lost_bytes)
    text = message_of(engine_dir)
    assert "the engine file is truncated" in text
    assert f"expected: {size} bytes; got: {size - lost_bytes} bytes" in text


def test_file_with_bytes_added(engine_dir: Path) -> None:
    edit(engine_dir / "rank0.engine", lambda data: data.append(0))
    assert "longer than it should be" in message_of(engine_dir)


def test_engine_of_another_format_version(engine_dir: Path) -> None:
    def change(data: bytearray) -> None:
        data[8:12] = (FORMAT_VERSION + 41).to_bytes(4, "little")

    edit(engine_dir / "rank0.engine", change)
    text = message_of(engine_dir)
    assert f"expected: engine format version {FORMAT_VERSION}; " in text
    assert f"got: engine format version {FORMAT_VERSION + 41}" in text
    assert f"--output_dir {engine_dir}" in text


@pytest.mark.parametrize("offset_bytes", [12, 20, Header.SIZE_BYTES - 1, Header.SIZE_BYTES + 7])
def test_corrupted_header(engine_dir: Path, offset_bytes: int) -> None:
    flip(engine_dir / "rank0.engine", offset_bytes)
    assert "header is corrupted" in message_of(engine_dir)


def test_corrupted_manifest(engine_dir: Path) -> None:
    flip(engine_dir / "rank0.engine", -100)
    assert "manifest is corrupted" in message_of(engine_dir)


def test_manifest_that_does_not_fit_the_schema(engine_dir: Path) -> None:
    def change(data: bytearray) -> None:
        start = data.index(b'"arena_bytes":') + len(b'"arena_bytes":')
        data[start : start + 3] = b"4.5"
        offset = data.index(b'{"tidemill_version"')
        sha256 = hashlib.sha256(data[offset:]).digest()
        data[:PAGE_BYTES] = Header(
            FORMAT_VERSION, len(data), offset, len(data) - offset, sha256
        ).pack()

    edit(engine_dir / "rank0.engine", change)
    text = message_of(engine_dir)
    assert "manifest is corrupted" in text
    assert "$.arena_bytes" in text


def test_corrupted_code(engine_dir: Path) -> None:
    section = EngineFile.open(engine_dir).manifest.sections["code"]
    flip(engine_dir / "rank0.engine", section.offset_bytes + 11)
    assert "code has another hash" in message_of(engine_dir)


def test_all_corrupted_sections_are_listed(engine_dir: Path) -> None:
    for section in EngineFile.open(engine_dir).manifest.sections.values():
        flip(engine_dir / "rank0.engine", section.offset_bytes)
    text = message_of(engine_dir, full_check=True)
    for name in ("weights", "code", "config"):
        assert f"{name} has another hash" in text
    assert f"{REBUILD} /models/tiny" in text


def test_corrupted_weights_are_found_by_the_full_check(engine_dir: Path) -> None:
    flip(engine_dir / "rank0.engine", PAGE_BYTES + 11)
    EngineFile.open(engine_dir).close()
    assert "weights has another hash" in message_of(engine_dir, full_check=True)


def test_edited_config_names_the_changed_keys(engine_dir: Path) -> None:
    path = engine_dir / "config.json"
    config = json.loads(path.read_text())
    config["build_config"]["max_batch_size"] = 4096
    config["note"] = "faster"
    path.write_text(json.dumps(config))
    assert "other values: build_config.max_batch_size, note" in message_of(engine_dir)


def test_config_that_is_no_json(engine_dir: Path) -> None:
    (engine_dir / "config.json").write_text("{")
    assert "invalid JSON" in message_of(engine_dir)


def test_engine_for_another_cpu_where_nothing_can_recompile_it(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(target, "host_features", lambda: frozenset({"fma", "sse2"}))
    monkeypatch.setattr(native_code, "host_features", target.host_features)
    with EngineFile.open(engine_dir) as engine, pytest.raises(EngineTargetError) as caught:
        find_native_code(engine)
    text = str(caught.value)
    assert "expected: a CPU of target x86-64-v3 (avx2, fma); " in text
    assert "got: a CPU of target older than any target, which lacks avx2" in text
    assert (
        "install llvmlite" in text and f"{REBUILD} /models/tiny --output_dir {engine_dir}" in text
    )


def test_output_directory_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        EngineWriter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_engine_directory_with_a_subdirectory(engine_dir: Path) -> None:
    (engine_dir / "results").mkdir()
    with pytest.raises(ConfigError, match="results"):
        EngineWriter(engine_dir)


def test_output_directory_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="a file"):
        EngineWriter(path)
    assert path.read_text() == "mine"


def test_output_directory_that_is_a_mount_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(ConfigError, match="a mount point"):
        EngineWriter(tmp_path)


def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BuildError, match="cannot be written"):
        EngineWriter(tmp_path / "file" / "engine")


@pytest.mark.parametrize("size", [3, 1 << 20])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    with (
        pytest.raises(BuildError, match="No space left on device"),
        EngineWriter(tmp_path / "engine") as writer,
    ):
        writer._file.close()
        monkeypatch.setattr(writer, "_file", open("/dev/full", "wb"))  # noqa: SIM115
        writer.add_weight("w", np.ones(size, np.uint8))
        writer.finish(make_manifest(), CODE_IMAGE, CONFIG, ())
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_file(tmp_path: Path) -> None:
    with (
        pytest.raises(BuildError, match=r"tokenizer\.json"),
        EngineWriter(tmp_path / "engine") as writer,
    ):
        writer.finish(make_manifest(), CODE_IMAGE, CONFIG, [tmp_path / "tokenizer.json"])
    assert list(tmp_path.iterdir()) == []


def test_any_flipped_bit_is_found(engine_dir: Path) -> None:
    path = engine_dir / "rank0.engine"
    sections = list(EngineFile.open(engine_dir).manifest.sections.values())
    manifest_start = path.read_bytes().index(b'{"tidemill_version"')
    ranges = [(0, PAGE_BYTES), (manifest_start, path.stat().st_size)]
    ranges += [(s.offset_bytes, s.offset_bytes + s.size_bytes) for s in sections]
    rng = np.random.default_rng(11)
    for start, end in ranges:
        for offset in [start, end - 1, *rng.integers(start, end, 20)]:
            flip(path, int(offset))
            with pytest.raises(EngineFormatError):
                EngineFile.open(engine_dir, full_check=True)
            flip(path, int(offset))
    EngineFile.open(engine_dir, full_check=True).close()
