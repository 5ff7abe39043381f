"""The run verb: prompts through an engine in this process, tokens to the terminal as they come.

Takes the command lines of TensorRT-LLM's run.py. Text goes to stdout; time to first token and
tokens per second go to stderr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.base.errors import ConfigError, EngineFormatError
from tidemill.frontends.cli import run_flags
from tidemill.frontends.cli.foreign_flags import read_foreign_flags
from tidemill.frontends.cli.prompts import Prompt, read_prompts
from tidemill.frontends.cli.session_flags import read_session, takes_settings
from tidemill.frontends.cli.shell import flags_of, given, print_json, say, say_notes

if TYPE_CHECKING:
    from tidemill.api.llm import LLM, SamplingParams, TextUpdate

HELP = """Generate text with an engine, in this process.

Several prompts are answered together; with --streaming one after the other.

\b
Examples:
  tidemill run --engine_dir ./engine --input_text "What is gravity?" --max_output_len 64
  tidemill run --engine_dir ./engine --input_text "Once" --input_text "Twice" --streaming
  tidemill run --engine_dir ./engine --input_file prompts.txt --json
  tidemill run --engine_dir ./engine --chat
"""


@dataclass(frozen=True)
class Answer:
    """One finished answer with its timings; what --json prints."""

    prompt: Prompt
    text: str
    num_tokens: int
    finish_reason: str
    first_token_ms: float
    tokens_per_s: float


@takes_settings
def run(
    context: typer.Context,
    engine_dir: Annotated[Path, typer.Option("--engine_dir", help="Engine that build wrote.")],
    input_text: Annotated[
        list[str] | None, typer.Option("--input_text", help="A prompt; may be repeated.")
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input_file", help="Prompts: lines of text, or token ids in .csv, .npy."),
    ] = None,
    max_output_len: Annotated[
        int, typer.Option("--max_output_len", min=1, help="Most tokens of an answer.")
    ] = 128,
    is_streaming: Annotated[
        bool, typer.Option("--streaming", help="Print tokens as they come.")
    ] = False,
    is_chat: Annotated[
        bool, typer.Option("--chat", help="Converse, with the model's chat template.")
    ] = False,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0)] = None,
    top_k: Annotated[int | None, typer.Option("--top_k", min=0, help="1 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option("--top_p", min=0.0, max=1.0)] = None,
    random_seed: Annotated[int | None, typer.Option("--random_seed", min=0)] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition_penalty", help="Of tokens that occurred.")
    ] = None,
    presence_penalty: Annotated[float | None, typer.Option("--presence_penalty")] = None,
    frequency_penalty: Annotated[float | None, typer.Option("--frequency_penalty")] = None,
    no_repeat_ngram_size: Annotated[
        int | None,
        typer.Option("--no_repeat_ngram_size", min=0, help="No n-gram twice; 0 is off."),
    ] = None,
    bad_words: Annotated[
        list[str] | None, typer.Option("--bad_words", help="Text that never comes.")
    ] = None,
    end_id: Annotated[
        int | None, typer.Option("--end_id", help="Token that ends an answer.")
    ] = None,
    stop_words: Annotated[
        list[str] | None, typer.Option("--stop_words", help="Text that ends an answer.")
    ] = None,
    tokenizer_dir: Annotated[
        Path | None, typer.Option("--tokenizer_dir", help="Default: the engine's own tokenizer.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
    *,
    settings: dict[str, str],
) -> None:
    say_notes(read_foreign_flags(run_flags.TOOL, run_flags.TABLE, context.args, flags_of(context)))
    is_typed = is_chat and not input_text and input_file is None
    prompts = [] if is_typed else read_prompts(input_text or [], input_file, end_id)
    messages = _messages(prompts) if is_chat else []
    _check_output(is_streaming or is_chat, as_json)

    from tidemill.api.llm import LLM, SamplingParams
    from tidemill.api.open_session import open_session

    session = read_session(settings)
    chosen = given(
        temperature=temperature, top_k=top_k, top_p=top_p, seed=random_seed, end_id=end_id,
        stop=stop_words, repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty, no_repeat_ngram_size=no_repeat_ngram_size,
        bad=bad_words,
    )  # fmt: skip
    sampling = SamplingParams(max_tokens=max_output_len, **chosen)
    _check_engine(engine_dir)
    with LLM.from_session(open_session(engine_dir, session, tokenizer_dir)) as llm:
        if is_chat:
            converse(llm, sampling, typed_lines() if is_typed else messages)
            return
        if is_streaming or len(prompts) == 1:
            answers = [answer(llm, prompt, sampling, is_streaming) for prompt in prompts]
        else:
            answers = answer_together(llm, prompts, sampling)
    if as_json:
        print_json(answers)
    elif not is_streaming:
        print("\n".join(each.text for each in answers))


def _check_output(is_streaming: bool, as_json: bool) -> None:
    if is_streaming and as_json:
        raise ConfigError(
            "tokens as they come and JSON cannot share one output",
            where="command line of run",
            expected="--json, or --streaming or --chat",
            got="both",
            hint="leave one out; --json has the timings of each answer, too",
        )


def _messages(prompts: list[Prompt]) -> list[str]:
    """Return the prompts of a conversation; tokens say nothing of who speaks."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts):
        raise ConfigError(
            "a conversation consists of text",
            where="--chat with --input_file",
            expected="a file with one message a line",
            got="token ids",
            hint="leave --chat out: token ids are answered as they are",
        )
    return texts


def _check_engine(engine_dir: Path) -> None:
    """Refuse what build did not write; only `LLM` builds models by itself."""
    from tidemill.api.engine_cache import is_engine

    if not is_engine(engine_dir):
        raise EngineFormatError(
            "there is no engine",
            where=str(engine_dir),
            expected="an engine directory that build wrote",
            got="another directory" if engine_dir.is_dir() else "no such directory",
            hint=f"tidemill build --checkpoint_dir CHECKPOINT --output_dir {engine_dir}",
        )


def answer(llm: LLM, prompt: Prompt, sampling: SamplingParams, is_streaming: bool) -> Answer:
    """Answer one prompt, streaming to stdout if asked, and report its speed on stderr."""
    return _follow(prompt, llm.generate_stream(prompt, sampling), is_streaming)


def answer_together(llm: LLM, prompts: list[Prompt], sampling: SamplingParams) -> list[Answer]:
    """Answer prompts in one batch and report the speed of each and of all on stderr."""
    start = time.perf_counter()
    running = [llm.generate_async(prompt, sampling, streaming=True) for prompt in prompts]
    answers = []
    for prompt, result in zip(prompts, running, strict=True):
        (output,) = result.result().outputs
        times = (start, result.first_token_s or start, result.last_token_s or start)
        reason = str(output.finish_reason or "")
        answers.append(_timed(Answer(prompt, output.text, output.length, reason, 0, 0), times))
    seconds = time.perf_counter() - start
    num_tokens = sum(each.num_tokens for each in answers)
    say(
        f"{len(answers)} prompts, {num_tokens} tokens, {num_tokens / seconds:.1f} tokens/s together"
    )
    return answers


def typed_lines() -> Iterator[str]:
    """Read lines from stdin, asking for each where a person types them."""
    say("One line is one message; end with Ctrl-D.")
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def converse(llm: LLM, sampling: SamplingParams, lines: Iterable[str]) -> None:
    """Answer each line in turn, with the whole conversation so far as the prompt."""
    messages: list[dict[str, str]] = []
    for line in lines:
        messages.append({"role": "user", "content": line.rstrip("\n")})
        # As tokens: the template has written the special ones, and text would get them twice.
        prompt = llm.chat_tokens(messages)
        reply = _follow(prompt, llm.generate_stream(prompt, sampling), is_streaming=True)
        messages.append({"role": "assistant", "content": reply.text})


def _follow(prompt: Prompt, updates: Iterable[TextUpdate], is_streaming: bool) -> Answer:
    start = time.perf_counter()
    first = last = start
    text, num_tokens, reason = "", 0, ""
    for update in updates:
        last = time.perf_counter()
        first = last if num_tokens == 0 else first
        text += update.text
        num_tokens += len(update.token_ids)
        reason = str(update.finish_reason or "")
        if is_streaming:
            print(update.text, end="", flush=True)
    if is_streaming:
        print()
    return _timed(Answer(prompt, text, num_tokens, reason, 0, 0), (start, first, last))


def _timed(answer: Answer, times: tuple[float, float, float]) -> Answer:
    """Add what the moments of start, first and last token say, and report it."""
    start, first, last = times
    # The first token's time is the prompt's; the rate is that of the tokens after it.
    after = answer.num_tokens - 1
    rate = after / (last - first) if after > 0 and last > first else 0.0
    first_ms = (first - start) * 1e3
    say(f"{answer.num_tokens} tokens, {rate:.1f} tokens/s, first token after {first_ms:.1f} ms")
    if not answer.num_tokens:
        say("note: the model ended at once; one that was trained to converse wants --chat")
    return replace(answer, first_token_ms=first_ms, tokens_per_s=rate)
