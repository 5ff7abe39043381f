"""The drop-in run.py: several texts after one --input_text, as TensorRT-LLM's takes them."""

from __future__ import annotations

from compat.run import repeat_input_text


def test_texts_after_one_flag_become_one_flag_each() -> None:
    arguments = ["--engine_dir", "e", "--input_text", "a", "b", "--max_output_len", "8"]
    assert repeat_input_text(arguments) == [
        "--engine_dir", "e", "--input_text", "a", "--input_text", "b", "--max_output_len", "8",
    ]  # fmt: skip


def test_flag_with_dashes_is_the_same_flag() -> None:
    assert repeat_input_text(["--input-text", "a"]) == ["--input_text", "a"]
