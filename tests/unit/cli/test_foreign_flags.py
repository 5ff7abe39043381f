"""Flags of TensorRT-LLM's tools: accepted with a note, refused, or unknown."""

from __future__ import annotations

import pytest

from tidemill.frontends.cli import convert_checkpoint_flags, run_flags, trtllm_build_flags
from tidemill.frontends.cli.foreign_flags import ForeignFlag, Kind, read_foreign_flags

TABLES = (convert_checkpoint_flags, run_flags, trtllm_build_flags)
EVERY_ROW = [(module.TOOL, row) for module in TABLES for row in module.TABLE]


def _valid_value(row: ForeignFlag) -> list[str]:
    if row.neutral:
        return [row.neutral[0]]
    if isinstance(row.values, tuple):
        return [row.values[0]]
    return {Kind.SWITCH: [], Kind.TEXT: ["x"]}.get(row.values, ["1"])


@pytest.mark.parametrize(("tool", "row"), EVERY_ROW, ids=lambda each: getattr(each, "name", each))
def test_every_row_answers_in_one_line_or_is_refused(tool: str, row: ForeignFlag) -> None:
    if row.is_refused and not row.neutral:
        return  # tests/errors has the refusals
    (note,) = read_foreign_flags(tool, [row], [row.name, *_valid_value(row)])
    assert note.startswith(row.name)
    assert "\n" not in note


@pytest.mark.parametrize("module", TABLES, ids=lambda module: module.TOOL)
def test_no_flag_stands_twice_in_a_table(module: object) -> None:
    rows: tuple[ForeignFlag, ...] = module.TABLE  # type: ignore[attr-defined]
    names = [name for row in rows for name in (row.name, *row.aliases)]
    assert len(names) == len(set(names))


def test_value_may_follow_an_equals_sign_and_the_name_may_have_dashes() -> None:
    notes = read_foreign_flags(
        "build", trtllm_build_flags.TABLE, ["--gemm-plugin=float16", "--fast_build"]
    )
    assert [note.partition(":")[0] for note in notes] == ["--gemm_plugin float16", "--fast_build"]
