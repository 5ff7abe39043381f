"""Every view shows what a person asks an engine, and its JSON says the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.engine.tiny_engine import CONFIG, make_manifest, write_engine
from tidemill.api.inspect import inspect_engine
from tidemill.base.dtypes import DType
from tidemill.base.errors import ConfigError
from tidemill.engine import native_code
from tidemill.engine.describe import VIEWS, bytes_text, live_at_once_bytes, without_reuse_bytes
from tidemill.engine.manifest import TensorSpec


@pytest.fixture
def engine_dir(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "engine", manifest=make_manifest(num_ops=5))


@pytest.mark.parametrize("what", VIEWS)
def test_view_has_text_and_json(engine_dir: Path, what: str) -> None:
    assert inspect_engine(engine_dir, what).isascii()
    json.loads(inspect_engine(engine_dir, what, as_json=True))


def test_summary_names_limits_sizes_and_who_chose_them(engine_dir: Path) -> None:
    lines = [line.split() for line in inspect_engine(engine_dir).splitlines()]
    assert ["max_batch_size", "7", "user"] in lines
    assert ["max_seq_len", "131", "default"] in lines
    assert ["gemm_plugin", "auto", "-"] in lines
    text = inspect_engine(engine_dir)
    assert "tiny (LlamaForCausalLM, bfloat16)" in text
    assert "x86-64-v3" in text
    # K and V, 3 layers, 2 heads of 16 elements in bf16.
    assert f"{2 * 3 * 2 * 16 * 2} B for each token" in text


def test_plan_has_a_line_for_each_op_with_its_intensity(engine_dir: Path) -> None:
    lines = inspect_engine(engine_dir, "plan").splitlines()
    first = " ".join(lines[1].split())
    assert first == "0 linear linear_0 3.92e+03 3922 1.00 y0 x=arena+0x0 rows=-1"
    assert lines[5].split()[:4] == ["4", "3", "linear", "linear_0"]
    assert ["linear", "5", "2", "1.96e+04", "19610"] in [line.split() for line in lines]


def test_memory_draws_live_ranges(engine_dir: Path) -> None:
    lines = inspect_engine(engine_dir, "memory").splitlines()
    assert lines[0].startswith("arena: 576 bytes; live at once: 512 bytes")
    bars = [line.split("|")[1] for line in lines[3:]]
    assert [(bar.index("#"), bar.rindex("#")) for bar in bars] == [
        (0, 25), (12, 38), (25, 51), (38, 63), (51, 63),
    ]  # fmt: skip


def test_graph_and_config_are_shown_as_stored(engine_dir: Path) -> None:
    assert inspect_engine(engine_dir, "graph") == make_manifest().graph_text
    assert json.loads(inspect_engine(engine_dir, "config")) == CONFIG


def test_tactics_show_choice_and_measured_time(engine_dir: Path) -> None:
    lines = [line.split() for line in inspect_engine(engine_dir, "tactics").splitlines()]
    assert lines[1] == ["linear", "37x53", "8", "rows_4", "measured", "2.0", "4", "12.5", "50%"]


def test_tactics_of_code_that_does_not_run_here_are_said_to_be_so(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_code, "host_features", lambda: frozenset({"avx2", "fma"}))
    assert "Chosen for" not in inspect_engine(engine_dir, "tactics")
    monkeypatch.setattr(native_code, "host_features", frozenset[str])
    first, *_, last = inspect_engine(engine_dir, "tactics").splitlines()
    assert first.startswith("Chosen for x86-64-v3. On this CPU the engine runs code")
    assert last.split()[3] == "rows_4"


def test_sizes_list_every_weight(engine_dir: Path) -> None:
    lines = [line.split() for line in inspect_engine(engine_dir, "sizes").splitlines()]
    assert ["weights", "3922", "3922", "B"] in lines
    assert ["w", "0", "3922"] in lines


def test_live_bytes_of_no_buffers_are_zero() -> None:
    assert live_at_once_bytes(()) == 0


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (10239, "10239 B"),
        (10240, "10 KiB"),
        (1022 * 1024, "1022 KiB"),
        (270 << 20, "270 MiB"),
        (3 << 40, "3072 GiB"),
    ],
)
def test_sizes_are_readable(num_bytes: int, text: str) -> None:
    assert bytes_text(num_bytes) == text


def test_unknown_view_names_the_known_ones(engine_dir: Path) -> None:
    with pytest.raises(ConfigError, match="summary, graph, plan, memory"):
        inspect_engine(engine_dir, "layers")


def test_bytes_that_are_updated_in_place_count_once() -> None:
    def buffer(name: str, offset: int, first: int, last: int) -> TensorSpec:
        return TensorSpec(name, DType.F32, "T", 25, 25, offset, 100, first, last)

    buffers = [
        buffer("h", 0, 0, 9), buffer("h_in_place", 0, 0, 9), buffer("x", 128, 1, 2),
        buffer("y", 128, 3, 4), buffer("z", 256, 4, 5),
    ]  # fmt: skip
    assert live_at_once_bytes(buffers) == 300
    assert without_reuse_bytes(buffers) == 400
