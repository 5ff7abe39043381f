"""The command's own promises: help, spelling, limits; the library is not called."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from tidemill.engine import describe
from tidemill.frontends.cli import inspect
from tidemill.frontends.cli.build import resolve_max_seq_len
from tidemill.frontends.cli.main import app
from tidemill.frontends.cli.shell import EXIT_USAGE, run_app

VERBS = (
    "sample",
    "convert",
    "build",
    "inspect",
    "verify",
    "run",
    "deploy",
    "serve",
    "bench",
    "demo",
)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, [verb, "--help"]) == 0
    assert f"tidemill {verb}" in capsys.readouterr().out.partition("Examples:")[2]


def test_verbs_stand_in_path_order() -> None:
    names = tuple(command.name for command in app.registered_commands)
    assert tuple(name for name in names if name in VERBS) == VERBS


@pytest.mark.parametrize("flag", ["--checkpoint_dir", "--checkpoint-dir"])
def test_flags_work_with_underscores_and_with_dashes(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # The unknown value is reported, so the flag before it has been understood.
    assert run_app(app, ["build", flag, "x", "--kv-cache-type", "linear"]) == EXIT_USAGE
    assert "--kv_cache_type of build" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((None, None, None), None),
        ((4096, None, None), 4096),
        ((None, 2048, 1024), 3072),
        ((None, None, 1024), 2048),
        ((3072, 2048, 1024), 3072),
    ],
)
def test_longest_sequence_is_the_sum_of_prompt_and_answer(
    flags: Sequence[int | None], expected: int | None
) -> None:
    max_seq_len, max_input_len, max_output_len = flags
    assert resolve_max_seq_len(max_seq_len, max_input_len, max_output_len) == expected


def test_help_imports_no_numpy_and_no_rich() -> None:
    code = (
        "import sys; from tidemill.frontends.cli.main import app\n"
        "from tidemill.frontends.cli.shell import run_app\n"
        "run_app(app, ['--help'])\n"
        "assert not {'numpy', 'rich', 'llvmlite', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_views_in_the_help_are_those_of_the_engine_room() -> None:
    assert set(inspect.VIEWS) == set(describe.VIEWS)
