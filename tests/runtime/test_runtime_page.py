"""The example of docs/RUNTIME.md runs, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tidemill.host.runtime_settings import NAMES

PAGE = (Path(__file__).parents[2] / "docs" / "RUNTIME.md").read_text("utf-8")


def test_simulation_example_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (said,) = re.findall(r"print\(.*\)  # (.*)", example)
    exec(example, {})
    assert capsys.readouterr().out.strip() == said


def test_page_names_every_setting() -> None:
    assert [name for name in NAMES if f"`{name}`" not in PAGE] == []
