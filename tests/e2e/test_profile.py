"""The profile of a real engine: each op has its time, costs counted by hand, a page to show it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.api.profile import ProfileReport, ProfileRequest, profile_engine
from tidemill.base.errors import ConfigError
from tidemill.frontends.cli.main import app
from tidemill.frontends.cli.shell import run_app

SHAPE = TinyLlama(head_size=16)


@pytest.fixture(scope="module")
def engine_dir(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("profile")
    convert(ConvertRequest(make_tiny_llama(SHAPE), directory / "ckpt", dtype="bfloat16"))
    build(BuildRequest(directory / "ckpt", directory / "engine", max_batch_size=4, max_seq_len=96))
    return directory / "engine"


def profile(engine_dir: Path, batch_size: int, position: int, num_tokens: int) -> ProfileReport:
    return profile_engine(ProfileRequest(engine_dir, batch_size, position, num_tokens, 2, 2))


def test_profile_times_every_op_within_the_step(engine_dir: Path) -> None:
    report = profile(engine_dir, 3, 17, 1)
    kinds = [op.op for op in report.ops]
    assert kinds.count("paged_attention") == SHAPE.num_layers and kinds[-1] == "sample"
    assert all(op.work_us > 0 and op.wait_us > 0 for op in report.ops)
    assert report.step_us >= max(op.work_us for op in report.ops)
    assert set(report.by_kind) == set(kinds)
    assert "batch 3, decode, 17 positions cached" in str(report)


def test_profile_counts_streamed_bytes_and_arithmetic(engine_dir: Path) -> None:
    report = profile(engine_dir, 2, 10, 5)
    head = next(op for op in report.ops if op.output == "logits")
    assert head.flops == 2 * 2 * SHAPE.vocab_size * SHAPE.hidden_size
    assert head.bytes == 2 * SHAPE.vocab_size * SHAPE.hidden_size
    attention = next(op for op in report.ops if op.op == "paged_attention")
    # Keys and values of 15 positions of 2 sequences; products of each query with all before it.
    assert attention.bytes == 2 * 2 * 15 * SHAPE.num_kv_heads * 16 * 2
    assert attention.flops == 4 * 2 * (11 + 12 + 13 + 14 + 15) * SHAPE.num_heads * 16


@pytest.mark.parametrize("step", [(5, 0, 1), (1, 96, 1), (1, 95, 2), (0, 0, 1), (1, -1, 1)])
def test_step_that_the_engine_cannot_run_is_refused(
    engine_dir: Path, step: tuple[int, int, int]
) -> None:
    with pytest.raises(ConfigError, match="cannot run the step") as caught:
        profile(engine_dir, *step)
    assert "4 requests" in caught.value.expected and "96 positions" in caught.value.expected
    for num_threads in (0, 1025):
        with pytest.raises(ConfigError, match=f"{num_threads} threads"):
            profile_engine(ProfileRequest(engine_dir, num_threads=num_threads))


class _Bars(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.num_bars, self.open_tags = 0, 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.num_bars += tag == "rect" and ("class", "time") in attrs
        self.open_tags += tag in ("svg", "body", "pre", "text")

    def handle_endtag(self, tag: str) -> None:
        self.open_tags -= tag in ("svg", "body", "pre", "text")


def test_command_writes_a_page_with_a_bar_for_every_op(
    engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "step.html"
    command = ["inspect", "--engine_dir", str(engine_dir), "--profile", "--html", str(page)]
    assert run_app(app, [*command, "--position", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    bars = _Bars()
    bars.feed(page.read_text("utf-8"))
    kinds = {op["op"] for op in report["ops"]}
    assert bars.num_bars == len(report["ops"]) + len(kinds)
    assert bars.open_tags == 0


def test_page_in_a_directory_that_is_not_there_is_refused(
    engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["inspect", "--engine_dir", str(engine_dir), "--profile", "--position", "8"]
    assert run_app(app, [*command, "--html", str(tmp_path / "none" / "step.html")]) != 0
    assert "the page cannot be written" in capsys.readouterr().err
