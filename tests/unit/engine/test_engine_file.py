"""What is written into an engine is what is read out of it, and nothing half-written is seen."""

from __future__ import annotations

import dataclasses
import errno
import json
import mmap
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.unit.engine.tiny_engine import CODE_IMAGE, CONFIG, make_manifest, write_engine
from tidemill.base.errors import BuildError
from tidemill.engine.format import FORMAT_VERSION, PAGE_BYTES, decode_manifest, encode_manifest
from tidemill.engine.reader import EngineFile
from tidemill.engine.writer import EngineWriter


def test_engine_reads_back_what_was_written(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    engine_dir = write_engine(tmp_path / "engine", extra_files=(tokenizer,))

    with EngineFile.open(engine_dir, full_check=True) as engine:
        expected = dataclasses.replace(
            make_manifest(),
            format_version=FORMAT_VERSION,
            sections=engine.manifest.sections,
            weights=engine.manifest.weights,
        )
        assert engine.manifest == expected
        assert engine.config == CONFIG
        assert engine.code_image() == CODE_IMAGE
        assert engine.path == engine_dir / "rank0.engine"
    names = sorted(path.name for path in engine_dir.iterdir())
    assert names == ["config.json", "rank0.engine", "tokenizer.json"]
    assert json.loads((engine_dir / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4095, 4096, 4097, 10007])
def test_weights_of_any_size_start_on_64_bytes_and_keep_their_bytes(
    tmp_path: Path, size: int
) -> None:
    rng = np.random.default_rng(size)
    first = rng.integers(0, 256, size, dtype=np.uint8)
    second = rng.standard_normal((3, 5)).astype(np.float32)[:, ::2]
    with EngineWriter(tmp_path / "engine") as writer:
        offsets = [writer.add_weight("first", first), writer.add_weight("second", second)]
        writer.finish(make_manifest(), CODE_IMAGE, CONFIG, ())

    weights = EngineFile.open(tmp_path / "engine", full_check=True).weights
    assert [offset % 64 for offset in offsets] == [0, 0]
    np.testing.assert_array_equal(weights[offsets[0] : offsets[0] + size], first)
    np.testing.assert_array_equal(weights[offsets[1] :].view(np.float32), second.reshape(-1))


def test_engine_without_weights_opens(tmp_path: Path) -> None:
    engine_dir = write_engine(tmp_path / "engine", weights={})
    assert EngineFile.open(engine_dir, full_check=True).weights.size == 0


def test_weights_are_mapped_read_only_on_a_page_and_outlive_close(tmp_path: Path) -> None:
    engine = EngineFile.open(write_engine(tmp_path / "engine"))
    weights = engine.weights
    engine.close()
    engine.close()

    assert weights.ctypes.data % mmap.PAGESIZE == PAGE_BYTES % mmap.PAGESIZE
    with pytest.raises(ValueError, match="read-only"):
        weights[0] = 1
    assert weights[2] == 1


class _PickyMapping:
    """A mapping on a system with pages of 64 KiB: it forgets from a page's start, or not at all."""

    def __init__(self) -> None:
        self.forgotten: list[tuple[int, int]] = []

    def madvise(self, _: int, start: int, size: int) -> None:
        if start % mmap.PAGESIZE or size <= 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.forgotten.append((start, size))


def test_whole_pages_are_forgotten_where_the_systems_are_larger_than_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = EngineFile.open(write_engine(tmp_path / "engine"))
    page = 16 * PAGE_BYTES
    monkeypatch.setattr(mmap, "PAGESIZE", page)
    mapping = _PickyMapping()
    monkeypatch.setattr(engine, "_mapping", mapping)
    assert engine.manifest.sections["weights"].offset_bytes == PAGE_BYTES
    engine.forget_weights(0, 3 * page)
    engine.forget_weights(3 * page - PAGE_BYTES, page)
    engine.forget_weights(0, 100)
    assert mapping.forgotten == [(page, 2 * page), (3 * page, page)]


def test_weight_table_names_every_range(tmp_path: Path) -> None:
    weights: dict[str, npt.NDArray[Any]] = {
        "a": np.ones(5, np.float32),
        "b": np.ones((2, 3), np.uint8),
    }
    manifest = EngineFile.open(write_engine(tmp_path / "engine", weights)).manifest
    ranges = [(w.name, w.offset_bytes, w.size_bytes) for w in manifest.weights]
    assert ranges == [("a", 0, 20), ("b", 64, 6)]


def test_engine_opens_from_its_file_alone(tmp_path: Path) -> None:
    engine_dir = write_engine(tmp_path / "engine")
    moved = (engine_dir / "rank0.engine").rename(tmp_path / "alone.engine")
    assert EngineFile.open(moved).config == CONFIG


def test_reformatted_config_is_accepted(tmp_path: Path) -> None:
    engine_dir = write_engine(tmp_path / "engine")
    (engine_dir / "config.json").write_text(json.dumps(CONFIG))
    assert EngineFile.open(engine_dir).config == CONFIG


def test_new_engine_replaces_old_one_while_it_is_mapped(tmp_path: Path) -> None:
    old = {"w": np.full(10007, 1, np.uint8)}
    engine_dir = write_engine(tmp_path / "engine", old)
    (engine_dir / "stale.json").write_text("{}")
    old_weights = EngineFile.open(engine_dir).weights

    write_engine(tmp_path / "engine", {"w": np.full(10007, 2, np.uint8)})

    assert set(old_weights) == {1}
    assert set(EngineFile.open(engine_dir).weights) == {2}
    assert not (engine_dir / "stale.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_engine_is_written_into_empty_and_nested_directories(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert EngineFile.open(write_engine(tmp_path / "empty")).config == CONFIG
    assert EngineFile.open(write_engine(tmp_path / "a" / "b")).config == CONFIG


def test_link_to_engine_directory_stays_a_link(tmp_path: Path) -> None:
    real = write_engine(tmp_path / "v1")
    link = tmp_path / "current"
    link.symlink_to(real)
    write_engine(link, {"w": np.full(3, 9, np.uint8)})
    assert link.is_symlink()
    assert list(EngineFile.open(real).weights) == [9, 9, 9]


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt])
def test_failed_build_leaves_nothing_and_keeps_the_old_engine(
    tmp_path: Path, exception: type[BaseException]
) -> None:
    engine_dir = write_engine(tmp_path / "engine")
    before = (engine_dir / "rank0.engine").read_bytes()
    with pytest.raises(exception), EngineWriter(engine_dir) as writer:
        writer.add_weight("w", np.ones(10007, np.uint8))
        raise exception
    assert (engine_dir / "rank0.engine").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_writer_left_without_finish_leaves_nothing(tmp_path: Path) -> None:
    with EngineWriter(tmp_path / "engine") as writer:
        writer.add_weight("w", np.ones(3, np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_failed_replacement_puts_the_old_engine_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_dir = write_engine(tmp_path / "engine")
    rename = Path.rename

    def refuse_new_engine(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new_engine)
    with pytest.raises(BuildError):
        write_engine(engine_dir, {"w": np.full(3, 9, np.uint8)})
    assert EngineFile.open(engine_dir, full_check=True).weights.size == 37 * 53 * 2
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_manifest_json_is_stable_and_parses_back() -> None:
    manifest = make_manifest(num_ops=17)
    encoded = encode_manifest(manifest)
    assert decode_manifest(encoded) == manifest
    assert encode_manifest(decode_manifest(encoded)) == encoded
    assert json.loads(encoded)["kv"]["dtype"] == "bf16"


def test_equal_builds_give_equal_files(tmp_path: Path) -> None:
    one, other = write_engine(tmp_path / "one"), write_engine(tmp_path / "other")
    assert (one / "rank0.engine").read_bytes() == (other / "rank0.engine").read_bytes()


def test_engine_of_400_ops_opens_within_50_ms(tmp_path: Path) -> None:
    engine_dir = write_engine(tmp_path / "engine", manifest=make_manifest(num_ops=400))
    durations_ms = []
    for _ in range(5):
        start = time.perf_counter()
        EngineFile.open(engine_dir).close()
        durations_ms.append((time.perf_counter() - start) * 1e3)
    # It takes 2 ms; the bound allows for a busy machine and catches reading the weights.
    assert min(durations_ms) < 50, durations_ms


def test_document_of_the_format_is_of_this_version() -> None:
    document = (Path(__file__).parents[3] / "docs" / "ENGINE_FORMAT.md").read_text("utf-8")
    assert f"format version {FORMAT_VERSION}\n" in document
