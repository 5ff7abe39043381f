"""A loaded engine with text: requests in, text and tokens out, one step at a time.

Joins the engine loop with the tokenizer, and each request with its detokenizer and stop strings.
A request's faults come back as its own update and touch no other. One thread owns a session.
Knows nothing of sockets or processes; `api.LLM` drives it in process, the host server behind one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from tidemill.base.debug import warn
from tidemill.base.errors import (
    CheckpointError,
    RequestError,
    SessionError,
    UnsupportedError,
)
from tidemill.host.config import SessionConfig
from tidemill.host.engine_tokenizer import EngineTokenizer
from tidemill.host.jobs import Job, News, make_job
from tidemill.host.messages import GenerateRequest, HostInfo, StatsReport, StatsSince, Update
from tidemill.host.request_reader import RequestReader
from tidemill.runtime.config import DEFAULT_CONFIG, RuntimeConfig
from tidemill.runtime.executor.cache_size import CacheMemory
from tidemill.runtime.executor.cpu import NativeExecutor
from tidemill.runtime.loop import Loop
from tidemill.runtime.request import Request
from tidemill.runtime.step import EngineLimits, Executor
from tidemill.runtime.validate_request import already_in_flight
from tidemill.text.tokenizer import Tokenizer


class Session:
    """Runs text requests on an executor; `step` while `has_work`."""

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer | None,
        runtime: RuntimeConfig = DEFAULT_CONFIG,
        engine_dir: str = "",
    ) -> None:
        """Take an executor; without a tokenizer, the engine directory's own is the one, if any."""
        self._tokenizer = EngineTokenizer(tokenizer, engine_dir)
        self._loop = Loop(executor, runtime)
        self._engine_dir = engine_dir
        self._reader = RequestReader(self._tokenizer.find, self._loop.limits, engine_dir)
        self._next_number = itertools.count()
        self._number_to_job: dict[int, Job] = {}
        self._id_to_numbers: dict[str, set[int]] = {}
        self._failed: list[Update] = []

    @classmethod
    def open(
        cls,
        engine_dir: Path | str,
        config: SessionConfig | None = None,
        tokenizer_dir: Path | str | None = None,
    ) -> Session:
        """Load an engine, and the tokenizer of `tokenizer_dir` if its own is not wanted.

        Raises: EngineFormatError, EngineTargetError, CheckpointError, ConfigError.
        """
        config = config or SessionConfig()
        path = Path(engine_dir)
        tokenizer = None if tokenizer_dir is None else Tokenizer.from_directory(tokenizer_dir)
        return cls(_load(path, config), tokenizer, config.runtime, str(path.resolve()))

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, on any thread. Raises: what reading the engine's own does."""
        return self._tokenizer.find()

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
        except Exception as error:
            self._failed.append(_failure(request.request_id, error))

    def cancel(self, request_id: str) -> None:
        """End a request; its last update comes with a step. Unknown ids are no error."""
        for number in tuple(self._id_to_numbers.get(request_id, ())):
            self._loop.cancel(number)

    def step(self) -> list[Update]:
        """Advance all requests and return what clients are to know; [] when idle."""
        updates, self._failed = self._failed, []
        for token_update in self._loop.step():
            job = self._number_to_job.get(token_update.request_id)
            if job is None:  # ended by a stop string; the runtime's end of it comes later
                continue
            try:
                news = job.take(token_update)
            except Exception as error:
                numbers = tuple(self._id_to_numbers[job.request_id])
                news = News((_failure(job.request_id, error),), numbers)
            updates.extend(news.updates)
            if news.ended:
                self._follow(job, news)
        return updates

    def arrange_memory(self) -> bool:
        """Use some milliseconds for faster steps later; returns whether more can be done now."""
        return self._loop.arrange_memory()

    def info(self) -> HostInfo:
        """Tell the engine's place and limits and the loop's counters."""
        place, has_tokenizer = (self._engine_dir, os.getpid()), self.tokenizer is not None
        return HostInfo(*place, self.limits, has_tokenizer, self._loop.stats(), _resident_bytes())

    def statistics(self, since: StatsSince) -> StatsReport:
        """Tell of iterations, events and requests that were not told yet."""
        loop = self._loop
        return StatsReport(
            loop.iterations_since(since.iteration),
            loop.events_since(since.event),
            loop.request_stats(),
            _resident_bytes(),
            loop.is_static_batching,
        )

    def check(self) -> None:
        """Recompute all invariants."""
        self._loop.check()
        numbers = [number for each in self._id_to_numbers.values() for number in each]
        assert sorted(numbers) == sorted(self._number_to_job)

    def close(self) -> None:
        """Let go of the engine; requests in flight are dropped."""
        self._loop.close()

    def _start(self, request: GenerateRequest) -> None:
        if request.request_id in self._id_to_numbers:
            raise already_in_flight(request.request_id)
        job = make_job(self._reader.read(request, self._next_number))
        self._id_to_numbers[request.request_id] = set()
        try:
            self._run(job, job.start(), is_new=True)
        except Exception:
            del self._id_to_numbers[request.request_id]
            raise

    def _follow(self, job: Job, news: News) -> None:
        """Forget what ended of a job, and run what comes next."""
        for number in news.ended:
            self._forget(job, number)
        try:
            self._run(job, news.requests, is_new=False)
        except Exception as error:
            self._failed.append(_failure(job.request_id, error))
        if not self._id_to_numbers[job.request_id]:
            del self._id_to_numbers[job.request_id]

    def _run(self, job: Job, requests: Sequence[Request], is_new: bool) -> None:
        """Queue all of a job's requests, or none and raise; a full queue refuses new jobs only."""
        numbers = self._id_to_numbers[job.request_id]
        try:
            for place, request in enumerate(requests):
                self._loop.submit(request, is_bounded=is_new and place == 0)
                numbers.add(request.request_id)
                self._number_to_job[request.request_id] = job
        except Exception:
            for number in tuple(numbers):
                self._forget(job, number)
            raise

    def _forget(self, job: Job, number: int) -> None:
        """Let go of one request of a job; the runtime may have ended it already."""
        if self._number_to_job.pop(number, None) is not None:
            self._id_to_numbers[job.request_id].discard(number)
            self._loop.cancel(number)


def _failure(request_id: str, error: Exception) -> Update:
    """Tell of a fault in one request's own work, its or ours: it ends, and the others go on."""
    # A tokenizer may turn out to be broken, or of a kind that cannot be streamed.
    if isinstance(error, RequestError | CheckpointError | UnsupportedError):
        return Update.failed(request_id, error)
    warn("session", f"request {request_id}: {error!r}")
    fault = SessionError(
        "the request could not be read or its answer not be made",
        where=f"request {request_id}",
        expected="a request, then the text and sights of its tokens",
        got=f"{type(error).__name__}: {error}",
        hint="this is a fault of Tidemill: please report it; other requests go on",
    )
    return Update.failed(request_id, fault)


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _load(path: Path, config: SessionConfig) -> NativeExecutor:
    return NativeExecutor.load(
        path,
        kv_cache_tokens=config.kv_cache_tokens,
        cache_memory=CacheMemory(config.kv_cache_fraction, config.kv_cache_host_memory_bytes),
        num_threads=config.num_threads,
        pin_threads=bool(config.pin_threads),
    )
