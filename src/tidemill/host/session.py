"""A loaded engine with text: requests in, text and tokens out, one step at a time.

Joins the engine loop with the tokenizer, and each request with its detokenizer and stop strings.
A request's faults come back as its own update and touch no other. One thread owns a session.
Knows nothing of sockets or processes; `api.LLM` drives it in process, the host server behind one.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from tidemill.base.errors import InvalidRequestError, RequestError
from tidemill.host.answer_text import AnswerText
from tidemill.host.config import SessionConfig
from tidemill.host.messages import GenerateRequest, HostInfo, Update
from tidemill.host.sampling_rules import resolve_sampling
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import Request
from tidemill.runtime.step import EngineLimits, Executor
from tidemill.text.tokenizer import Tokenizer

TOKENIZER_FILE = "tokenizer.json"


class Session:
    """Runs text requests on an executor; `step` while `has_work`."""

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer | None,
        max_queue_size: int = 0,
        engine_dir: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self._loop = Loop(executor, max_queue_size)
        self._engine_dir = engine_dir
        self._end_ids = tokenizer.eos_token_ids if tokenizer else ()
        self._next_number = itertools.count()
        self._number_to_answer: dict[int, AnswerText] = {}
        self._id_to_number: dict[str, int] = {}
        self._failed: list[Update] = []

    @classmethod
    def open(cls, engine_dir: Path | str, config: SessionConfig | None = None) -> Session:
        """Load an engine and, where it has one, its tokenizer.

        Raises: EngineFormatError, EngineTargetError, CheckpointError, ConfigError.
        """
        config = config or SessionConfig()
        path = Path(engine_dir)
        executor = NativeExecutor.load(
            path, kv_cache_tokens=config.kv_cache_tokens, num_threads=config.num_threads
        )
        try:
            has_tokenizer = (path / TOKENIZER_FILE).exists()
            tokenizer = Tokenizer.from_directory(path) if has_tokenizer else None
        except BaseException:
            executor.close()
            raise
        return cls(executor, tokenizer, config.max_queue_size, str(path.resolve()))

    @property
    def limits(self) -> EngineLimits:
        """The shapes the engine was built for, and its cache's size."""
        return self._loop.limits

    @property
    def has_work(self) -> bool:
        """Whether a step would do or tell anything."""
        return self._loop.has_work or bool(self._failed)

    def submit(self, request: GenerateRequest) -> None:
        """Start a request; if it cannot be served, its update of the next step says why."""
        try:
            self._start(request)
        except RequestError as error:
            self._failed.append(Update.failed(request.request_id, error))

    def cancel(self, request_id: str) -> None:
        """End a request; its last update comes with a step. Unknown ids are no error."""
        number = self._id_to_number.get(request_id)
        if number is not None:
            self._loop.cancel(number)

    def step(self) -> list[Update]:
        """Advance all requests and return what clients are to know; [] when idle."""
        updates, self._failed = self._failed, []
        for token_update in self._loop.step():
            number = token_update.request_id
            answer = self._number_to_answer.get(number)
            if answer is None:  # ended by a stop string; the runtime's end of it comes later
                continue
            update = answer.push(token_update)
            if update is None:
                continue
            updates.append(update)
            if update.finish_reason is not None:
                del self._number_to_answer[number]
                del self._id_to_number[answer.request_id]
                self._loop.cancel(number)
        return updates

    def info(self) -> HostInfo:
        """Tell the engine's place and limits and the loop's counters."""
        has_tokenizer = self.tokenizer is not None
        return HostInfo(
            self._engine_dir, os.getpid(), self.limits, has_tokenizer, self._loop.stats()
        )

    def check(self) -> None:
        """Recompute all invariants."""
        self._loop.check()
        assert set(self._id_to_number.values()) == set(self._number_to_answer)

    def close(self) -> None:
        """Let go of the engine; requests in flight are dropped."""
        self._loop.close()

    def _start(self, request: GenerateRequest) -> None:
        if request.request_id in self._id_to_number:
            raise InvalidRequestError(
                "a request of this id is in flight",
                where=f"request {request.request_id}",
                hint="give each request an id of its own",
            )
        text, tokens = self._prompt(request)
        echo = ""
        if not (request.exclude_input_in_output or request.streaming):
            echo = self._echo(request, text, tokens)
        answer = AnswerText(request, self.tokenizer, len(tokens), echo)
        number = next(self._next_number)
        self._loop.submit(
            Request(
                number,
                tokens,
                max_new_tokens=self._max_new_tokens(request, len(tokens)),
                sampling=resolve_sampling(
                    request.temperature, request.top_k, request.top_p, request.seed
                ),
                end_ids=self._end_ids_of(request),
            )
        )
        self._number_to_answer[number] = answer
        self._id_to_number[request.request_id] = number

    def _prompt(self, request: GenerateRequest) -> tuple[str | None, tuple[int, ...]]:
        if request.prompt_tokens is not None:
            return request.prompt, tuple(request.prompt_tokens)
        tokenizer = self._tokenizer_for(request)
        if request.prompt is not None:
            text, adds_special = request.prompt, request.add_special_tokens
        elif request.messages is not None:
            # The template has written the special tokens.
            text, adds_special = tokenizer.apply_chat_template(request.messages), False
        else:
            raise InvalidRequestError(
                "the request has no prompt",
                where=f"request {request.request_id}",
                expected="one of prompt, prompt_tokens or messages",
                got="none",
            )
        return text, tuple(encode_prompt(tokenizer, text, adds_special))

    def _echo(self, request: GenerateRequest, text: str | None, tokens: tuple[int, ...]) -> str:
        if text is not None or self.tokenizer is None:
            return text or ""
        return self.tokenizer.decode(tokens, request.skip_special_tokens)

    def _tokenizer_for(self, request: GenerateRequest) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequestError(
                "the request is text, and the engine has no tokenizer",
                where=f"request {request.request_id}",
                expected=f"{TOKENIZER_FILE} in the engine directory {self._engine_dir}",
                got="no such file",
                hint="send prompt_tokens, or copy the model's tokenizer files there",
            )
        return self.tokenizer

    def _max_new_tokens(self, request: GenerateRequest, num_prompt: int) -> int:
        if request.max_tokens is not None:
            return request.max_tokens
        limits = self.limits
        capacity = min(limits.max_seq_len, limits.num_blocks * limits.tokens_per_block)
        return max(1, capacity - num_prompt)

    def _end_ids_of(self, request: GenerateRequest) -> tuple[int, ...]:
        if request.end_id is None:
            return self._end_ids
        return () if request.end_id < 0 else (request.end_id,)


def encode_prompt(tokenizer: Tokenizer, text: str, adds_special: bool) -> list[int]:
    """Turn a prompt's text into tokens.

    Raises: InvalidRequestError when it is no valid text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            "the prompt is no valid text",
            expected="Unicode characters",
            got=f"half a surrogate pair at character {error.start}",
            hint="decode the bytes as UTF-8 before they are sent",
        ) from error
    return tokenizer.encode(text, adds_special)
