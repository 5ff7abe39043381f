"""Windows by layer: what Hugging Face's keys mean, and how TensorRT-LLM's list stands for them."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.checkpoint.attention_windows import (
    Windows,
    runtime_defaults_faults,
    runtime_defaults_of,
    windows_from_hf,
    windows_of,
)
from tidemill.checkpoint.field_reader import FieldReader

MISTRAL, LLAMA = "MistralForCausalLM", "LlamaForCausalLM"
S, F = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("architecture", "values", "expected"),
    [
        (LLAMA, {}, (None, None, None)),
        (MISTRAL, {}, (4096, 4096, 4096)),
        (MISTRAL, {"sliding_window": None}, (None, None, None)),
        (MISTRAL, {"sliding_window": 7}, (7, 7, 7)),
        (MISTRAL, {"sliding_window": 7, "layer_types": [F, S, F]}, (None, 7, None)),
    ],
)
def test_keys_of_hugging_face(architecture: str, values: dict[str, Any], expected: Windows) -> None:
    reader = FieldReader(values)
    assert windows_from_hf(reader, architecture, 3) == expected
    assert not reader.faults


@pytest.mark.parametrize(
    ("windows", "written"),
    [
        ((None, None, None), None),
        ((100, None, 300), None),
        ((7, 7, 7), [7]),
        ((7, None, 200), [7, 100, 100]),
    ],
)
def test_windows_survive_the_way_through_a_checkpoint(
    windows: Windows, written: list[int] | None
) -> None:
    defaults = runtime_defaults_of(windows, 100)
    assert defaults == (None if written is None else {"max_attention_window": written})
    if written is not None:
        assert windows_of(defaults, 3) == tuple(min(w or 100, 100) for w in windows)


def test_short_list_is_repeated_over_the_layers() -> None:
    assert windows_of({"max_attention_window": [5, 9]}, 5) == (5, 9, 5, 9, 5)


def test_faults_are_named() -> None:
    faults = runtime_defaults_faults({"max_attention_window": [5, 0], "sink_token_length": 4})
    assert "max_attention_window is [5, 0]" in faults[0] and "sink_token_length is 4" in faults[1]
    assert not runtime_defaults_faults({"max_attention_window": [5], "sink_token_length": None})
