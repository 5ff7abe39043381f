"""What the run verb prints, with a stand-in for the engine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.unit.host.fake_engine import open_session, write_tokenizer
from tidemill.api.llm import LLM, SamplingParams
from tidemill.frontends.cli.main import app
from tidemill.frontends.cli.prompts import Prompt
from tidemill.frontends.cli.run import answer, answer_together, converse
from tidemill.frontends.cli.shell import EXIT_USAGE, run_app
from tidemill.host.config import SessionConfig
from tidemill.host.session import Session


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


class _Silence(_Echo):
    def generate_stream(self, prompt: str, sampling: object) -> Iterator[_Update]:
        yield _Update("", (), "stop")


def test_model_that_says_nothing_is_said_to_want_a_conversation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    llm: Any = _Silence()
    assert answer(llm, "hi", llm, is_streaming=True).num_tokens == 0
    assert "--chat" in capsys.readouterr().err


def test_conversation_carries_its_history(capsys: pytest.CaptureFixture[str]) -> None:
    llm: Any = _Echo()
    converse(llm, llm, io.StringIO("one\ntwo\n"))
    assert capsys.readouterr().out.splitlines() == ["<u:one>", "<u:one|a:<u:one>|u:two>"]


def test_conversation_of_token_ids_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.csv").write_text("5,6\n")
    command = ["run", "--engine_dir", "e", "--chat", "--input_file", str(tmp_path / "ids.csv")]
    assert run_app(app, command) == EXIT_USAGE
    assert "a conversation consists of text" in capsys.readouterr().err


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


def test_flags_reach_sampling_and_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "rank0.engine").touch()
    asked: list[Any] = []

    def open_fake(engine_dir: Path, config: SessionConfig, tokenizer_dir: Path | None) -> Session:
        asked.append(config.runtime.max_queue_size)
        return open_session(engine_dir)

    def note(llm: LLM, prompt: Prompt, params: SamplingParams) -> Iterator[_Update]:
        asked.append(params)
        yield _Update("", (1,), "length")

    monkeypatch.setattr("tidemill.api.open_session.open_session", open_fake)
    monkeypatch.setattr(LLM, "generate_stream", note)
    words = (
        "--repetition_penalty 1.5 --presence_penalty 0.5 --frequency_penalty 0.25 --bad_words no"
    )
    more = "--bad-words never --no_repeat_ngram_size 3 --max_queue_size 9 --input_text hello"
    result = CliRunner().invoke(
        app, ["run", "--engine_dir", str(tmp_path), *words.split(), *more.split()]
    )
    assert result.exit_code == 0, result.output
    assert asked == [
        9,
        SamplingParams(
            max_tokens=128,
            repetition_penalty=1.5,
            presence_penalty=0.5,
            frequency_penalty=0.25,
            bad=["no", "never"],
            no_repeat_ngram_size=3,
        ),
    ]
