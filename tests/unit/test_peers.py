"""What the comparison with other engines makes of times: rates, ratios, misses, absences."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.peers.cases import all_cases
from bench.peers.engines import ROWS
from bench.peers.environments import main as make_environments
from bench.peers.results import Absence, Results, Sample
from bench.peers.table import table

MS_PER_PROMPT_TOKEN, MS_PER_STEP = 1.0, 10.0


def timed(prompts: list[list[int]], lengths: list[int]) -> float:
    """Take as long as an engine of these costs, one prompt after the other, then all together."""
    prompts_ms = sum(map(len, prompts)) * MS_PER_PROMPT_TOKEN
    return (prompts_ms + (max(lengths) - 1) * MS_PER_STEP) / 1e3


@pytest.mark.parametrize(
    ("case", "rate"),
    [
        ("prefill 512", 1000.0),
        ("prefill 2048", 1000.0),
        ("decode @128", 100.0),
        ("decode @1024", 100.0),
        ("batch 8", 800.0),
        ("batch 32", 3200.0),
        ("trace", 4498 / (9.391 + 2.44)),
    ],
)
def test_rates_leave_out_what_they_do_not_name(case: str, rate: float) -> None:
    found = all_cases(num_new=16)[case].measure(timed, random.Random(1))
    assert found == pytest.approx(rate)


def test_ratio_is_of_medians_to_the_best_peer_and_names_a_miss(tmp_path: Path) -> None:
    ours, llama, vllm = (
        next(row for row in ROWS if row.name == name)
        for name in ("tidemill bf16", "llama.cpp BF16", "vLLM bf16")
    )
    results = Results()
    for row, values in ((ours, [100.0, 140.0, 130.0]), (llama, [99.0]), (vllm, [40.0, 104.0])):
        for value in values:
            results.add(Sample("smollm2", row, "decode @128", value))
    results.add(Sample("smollm2", ours, "cold", 0.5))
    results.add(Sample("smollm2", llama, "cold", 0.4))
    results.note_absence(Absence("smollm2", "OpenVINO bf16", "not installed"))
    results.write(tmp_path / "samples")
    read = Results()
    read.read(tmp_path / "samples")
    text = table(read)
    assert text == table(results)
    assert "1.31 (llama.cpp, target 1.5)" in text and "0.80 (llama.cpp, target 1.0)" in text
    assert "Absent: OpenVINO bf16 on smollm2 (not installed)." in text


def test_an_unknown_peer_is_refused_before_anything_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TIDEMILL_PEERS_DIR", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["environments", "llama_cpp", "lama"])
    with pytest.raises(SystemExit):
        make_environments()
    assert "no such peer: lama; there are llama_cpp, vllm, openvino" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
