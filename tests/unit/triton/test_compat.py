"""Upstream's two scripts: templates filled, launch lines translated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.frontends.triton.launch_flags import translate_launch_flags
from tidemill.frontends.triton.template import fill_template, parse_substitutions

TEMPLATE = """max_batch_size: ${triton_max_batch_size}
max_queue_delay_microseconds: ${max_queue_delay_microseconds}
parameters { key: "gpt_model_path" value { string_value: "${engine_dir}" } }
parameters { key: "rest" value { string_value: "${left_alone}" } }
"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "config.pbtxt"
    path.write_text(TEMPLATE)
    return path


def test_placeholders_are_filled_defaults_stand_in_and_others_stay(template: Path) -> None:
    text = fill_template(template, {"triton_max_batch_size": "8", "engine_dir": "/e"})
    assert "max_batch_size: 8" in text and "max_queue_delay_microseconds: 0" in text
    assert 'string_value: "/e"' in text and "${left_alone}" in text


def test_values_may_have_colons_and_escaped_commas() -> None:
    given = parse_substitutions(r"engine_dir:/a:b,ids:0\,1")
    assert given == {"engine_dir": "/a:b", "ids": "0,1"}


def test_old_command_line_fills_a_file_in_place(template: Path) -> None:
    script = Path(__file__).parents[3] / "compat" / "fill_template.py"
    line = [sys.executable, str(script), "-i", str(template), "engine_dir:/e,left_alone:x"]
    subprocess.run(line, check=True)
    assert "/e" in template.read_text() and '"x"' in template.read_text()
    failed = subprocess.run([*line[:-1], "typo:1"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and "typo" in failed.stderr


def test_launch_flags_become_those_of_serve_and_the_rest_is_said() -> None:
    said: list[str] = []
    line = ["--world_size", "2", "--model_repo=r", "--http_port", "9000", "--force", "--log"]
    flags = translate_launch_flags([*line, "--exit_timeout", "30"], said.append)
    assert flags[:4] == ["--model_repository", "r", "--http_port", "9000"]
    assert flags[4:6] == ["--exit_timeout", "30"]
    assert flags[6:] == ["--", "--log-verbose=3", "--log-file=triton_log.txt"]
    assert len(said) == 1 and said[0].endswith(": world_size, force")
