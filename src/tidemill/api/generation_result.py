"""An answer on its way: what `generate_async` returns, for threads and for asyncio alike.

    async for output in llm.generate_async("Once", streaming=True):
        print(output.outputs[0].text_diff, end="")

Updates come in on the thread that steps; whoever waits, in whichever loop or thread, is woken.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidemill.api.outputs import CompletionOutput, Logits, RequestOutput, extend, to_logits
from tidemill.base.errors import TidemillError
from tidemill.host.messages import Update

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True)
class AskedPrompt:
    """A request's number, and its prompt in both forms; of one that is cut, the text is all."""

    number: int
    prompt: str | None
    prompt_token_ids: list[int]
    is_cut: bool = False

    @property
    def request_id(self) -> str:
        return str(self.number)


class GenerationResult:
    """A request that was started; wait for it, iterate over it or abort it.

    `await result`, `aresult()` and `result()` give the whole answer; `async for` gives what is
    known after each step of a streamed one. Leaving the iteration early does not abort.
    `first_token_s` and `last_token_s` are on the clock of `time.perf_counter`, None before.
    """

    def __init__(self, asked: AskedPrompt, on_abort: Callable[[str], None]) -> None:
        self._asked = asked
        self._on_abort = on_abort
        self._changed = threading.Condition()
        self._index_to_answer = {0: CompletionOutput(0, "", [], None)}
        self._news: deque[RequestOutput] = deque()
        self._error: TidemillError | None = None
        self._is_done = False
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self._context_logits: Logits | None = None
        self._wakers: list[Callable[[], None]] = []

    @property
    def request_id(self) -> int:
        return self._asked.number

    @property
    def finished(self) -> bool:
        """Whether the answer is whole, or failed."""
        return self._is_done

    @property
    def outputs(self) -> list[CompletionOutput]:
        """The answers as far as they are known."""
        return [answer for _, answer in sorted(self._index_to_answer.items())]

    def append(self, update: Update, /) -> None:
        """Take in news; called by the thread that steps."""
        with self._changed:
            if self._is_done:
                return
            if update.error is not None:
                self._error = update.error.to_exception()
            else:
                empty = CompletionOutput(update.index, "", [], None)
                answer = self._index_to_answer.get(update.index, empty)
                self._index_to_answer[update.index] = extend(answer, update)
                if update.token_ids:
                    self.last_token_s = time.perf_counter()
                    self.first_token_s = self.first_token_s or self.last_token_s
                raw, num_prompt = update.context_logits, len(self._asked.prompt_token_ids)
                if raw:
                    self._context_logits = to_logits(raw, num_prompt)
            self._is_done = update.is_final
            if update.error is None:
                self._news.append(self._output())
            self._changed.notify_all()
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the whole answer.

        Raises: RequestError when the request failed, TimeoutError after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._is_done:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"request {self.request_id} has not ended yet")
                self._changed.wait(left)
        return self._whole()

    async def aresult(self) -> RequestOutput:
        """Wait for the whole answer without holding up the event loop; cancelling it aborts."""
        import asyncio  # its users have it; to others it costs 20 ms of a first token

        try:
            while not self._is_done:
                await self._change(lambda: self._is_done)
        except asyncio.CancelledError:
            self.abort()
            raise
        return self._whole()

    def __await__(self) -> Generator[object, None, RequestOutput]:
        return self.aresult().__await__()

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        import asyncio

        try:
            while self._news or not self._is_done:
                await self._change(lambda: bool(self._news) or self._is_done)
                while self._news:
                    yield self._news.popleft()
        except asyncio.CancelledError:
            self.abort()
            raise
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        """End the request now; its answer is what was known, with reason "cancelled"."""
        self._on_abort(self._asked.request_id)
        self.append(Update(self._asked.request_id, [], "", "cancelled", 0, 0))

    async def _change(self, is_so: Callable[[], bool]) -> None:
        import asyncio

        loop, event = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            if is_so():
                return
            self._wakers.append(lambda: _wake(loop, event))
        await event.wait()

    def _whole(self) -> RequestOutput:
        if self._error is not None:
            raise self._error
        return self._output()

    def _output(self) -> RequestOutput:
        asked = self._asked
        return RequestOutput(
            asked.number,
            asked.prompt,
            asked.prompt_token_ids,
            self.outputs,
            self._is_done,
            self._context_logits,
        )


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)
