"""What the run verb prints, with a stand-in for the engine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tidemill.frontends.cli.run import answer, converse


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

    def apply_chat_template(self, messages: list[dict[str, str]]) -> str:
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
