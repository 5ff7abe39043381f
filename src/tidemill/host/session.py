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
from tidemill.host.request_reader import TOKENIZER_FILE, RequestReader
from tidemill.runtime.config import RuntimeConfig
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.step import EngineLimits, Executor
from tidemill.text.tokenizer import Tokenizer


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
        self._loop = Loop(executor, RuntimeConfig(max_queue_size=max_queue_size))
        self._engine_dir = engine_dir
        self._reader = RequestReader(tokenizer, self._loop.limits, engine_dir)
        self._next_number = itertools.count()
        self._number_to_answer: dict[int, AnswerText] = {}
        self._id_to_number: dict[str, int] = {}
        self._failed: list[Update] = []

    @classmethod
    def open(
        cls,
        engine_dir: Path | str,
        config: SessionConfig | None = None,
        tokenizer_dir: Path | str | None = None,
    ) -> Session:
        """Load an engine and, where it has one, its tokenizer, or the one of `tokenizer_dir`.

        Raises: EngineFormatError, EngineTargetError, CheckpointError, ConfigError.
        """
        config = config or SessionConfig()
        path = Path(engine_dir)
        executor = NativeExecutor.load(
            path, kv_cache_tokens=config.kv_cache_tokens, num_threads=config.num_threads
        )
        try:
            tokenizer = _load_tokenizer(path, tokenizer_dir)
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
            if update.is_final:
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
        number = next(self._next_number)
        computed, answer = self._reader.read(number, request)
        self._loop.submit(computed)
        self._number_to_answer[number] = answer
        self._id_to_number[request.request_id] = number


def _load_tokenizer(engine_dir: Path, tokenizer_dir: Path | str | None) -> Tokenizer | None:
    if tokenizer_dir is not None:
        return Tokenizer.from_directory(tokenizer_dir)
    has_own = (engine_dir / TOKENIZER_FILE).exists()
    return Tokenizer.from_directory(engine_dir) if has_own else None
