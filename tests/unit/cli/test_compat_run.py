"""The drop-in run.py: command lines of TensorRT-LLM's, spelled out for ours."""

from __future__ import annotations

from compat.run import spell_out


def test_texts_after_one_flag_become_one_flag_each() -> None:
    arguments = ["--engine_dir", "e", "--input_text", "a", "b", "--max_output_len", "8"]
    assert spell_out([*arguments, "--top_k=5", "--stop_words", "x", "y", "z"]) == [
        "--engine_dir", "e", "--input_text", "a", "--input_text", "b", "--max_output_len", "8",
        "--top_k", "5", "--stop_words", "x", "--stop_words", "y", "--stop_words", "z",
    ]  # fmt: skip


def test_flag_with_dashes_is_the_same_flag() -> None:
    assert spell_out(["--input-text", "a-b", "--top-k", "2"]) == [
        "--input_text", "a-b", "--top_k", "2",
    ]  # fmt: skip


def test_answers_are_greedy_unless_top_k_says_otherwise() -> None:
    assert spell_out(["--temperature", "0.8"]) == ["--temperature", "0.8", "--top_k", "1"]


def test_top_p_of_zero_means_no_limit() -> None:
    assert spell_out(["--top_p", "0.0", "--top_k", "3"]) == ["--top_k", "3"]


def test_switches_and_stray_words_stay_where_they_are() -> None:
    assert spell_out(["stray", "--streaming", "--top_k", "1"]) == [
        "stray", "--streaming", "--top_k", "1",
    ]  # fmt: skip
