"""What the run verb prints, with a stand-in for the engine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.host.fake_engine import open_session, write_tokenizer
from tidemill.api.llm import LLM, SamplingParams
from tidemill.frontends.cli.prompts import Prompt
from tidemill.frontends.cli.run import answer, answer_together, converse


@dataclass(frozen=True)
class _Update:
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None


class _Echo:
    """Answers every prompt with two pieces, the second of two tokens."""

    def generate_stream(self, prompt: str, sampling: object) -> Iterator[_Update]:
        yield _Update(f"<{prompt}", (1,))
        yield _Update(">", (2, 3), "length")

    def chat_tokens(self, messages: list[dict[str, str]]) -> str:
        return "|".join(f"{each['role'][0]}:{each['content']}" for each in messages)


def test_streamed_pieces_joined_are_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    llm: Any = _Echo()
    result = answer(llm, "hi", llm, is_streaming=True)
    printed = capsys.readouterr()
    assert printed.out == result.text + "\n" == "<hi>\n"
    assert (result.num_tokens, result.finish_reason) == (3, "length")
    assert "3 tokens" in printed.err


def test_answer_without_streaming_leaves_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    llm: Any = _Echo()
    answer(llm, "hi", llm, is_streaming=False)
    assert capsys.readouterr().out == ""


def test_conversation_carries_its_history(capsys: pytest.CaptureFixture[str]) -> None:
    llm: Any = _Echo()
    converse(llm, llm, io.StringIO("one\ntwo\n"))
    assert capsys.readouterr().out.splitlines() == ["<u:one>", "<u:one|a:<u:one>|u:two>"]


def test_several_prompts_are_answered_together_in_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tokenizer(tmp_path)
    prompts: list[Prompt] = [">one", ">", ">three"]
    with LLM.from_session(open_session(tmp_path, step_seconds=0.001)) as llm:
        answers = answer_together(llm, prompts, SamplingParams())
    assert [each.text for each in answers] == ["one", "", "three"]
    assert [each.num_tokens for each in answers] == [3, 0, 5]
    assert answers[0].first_token_ms > 0 and answers[2].tokens_per_s > 0
    assert "3 prompts, 8 tokens" in capsys.readouterr().err
